//! Calls of gRPC as they come over HTTP, whatever answers them: their frames, their time,
//! and how many have ended how.

pub(crate) mod calls;
pub(crate) mod deadline;
pub(crate) mod frames;
