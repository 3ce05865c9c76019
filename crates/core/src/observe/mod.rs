//! What a node shows of itself.

pub(crate) mod comparison;
pub(crate) mod digest;
pub(crate) mod recent;
pub(crate) mod status;
