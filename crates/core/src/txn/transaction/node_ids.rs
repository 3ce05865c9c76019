//! What is stored with the data about the ids of nodes.

use bytes::Bytes;
use prost::Message;

use super::Transaction;
use crate::error::{ReadError, WriteError};
use crate::group::awaited::AwaitedNodes;
use crate::ids::NodeId;
use crate::txn::catalog::{self, CATALOG};

impl Transaction {
    /// Records that a node id was given out. Returns the newest id given out so far.
    ///
    /// # Errors
    /// Those of a read and of a write.
    pub(crate) fn note_node_id(&self, id: NodeId) -> Result<NodeId, WriteError> {
        let key = Bytes::from_static(catalog::NODE_ID_KEY);
        let noted = catalog::decode_node_id(self.get(CATALOG, &key)?.as_ref());
        let noted = noted.map_err(ReadError::Engine)?;
        if noted >= id {
            return Ok(noted);
        }
        let value = Bytes::copy_from_slice(&id.0.to_le_bytes());
        self.lock()
            .write(CATALOG, key, Some(value), self.bytes_max)?;
        Ok(id)
    }

    /// The nodes with new ids that may ask to be let in.
    ///
    /// # Errors
    /// Those of a read.
    pub(crate) fn awaited_nodes(&self) -> Result<AwaitedNodes, WriteError> {
        let key = Bytes::from_static(catalog::AWAITED_KEY);
        let awaited = AwaitedNodes::read(self.get(CATALOG, &key)?.as_ref());
        Ok(awaited.map_err(ReadError::Engine)?)
    }

    /// # Errors
    /// Those of a write.
    pub(crate) fn set_awaited_nodes(&self, awaited: &AwaitedNodes) -> Result<(), WriteError> {
        let key = Bytes::from_static(catalog::AWAITED_KEY);
        let value = Bytes::from(awaited.encode_to_vec());
        self.lock().write(CATALOG, key, Some(value), self.bytes_max)
    }
}
