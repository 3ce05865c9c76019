//! Calls of gRPC as they come over HTTP, whatever answers them: their frames and their time.

pub(crate) mod deadline;
pub(crate) mod frames;
