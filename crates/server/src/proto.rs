//! The messages and services of the etcd v3 API, made from `proto/`.

pub use generated::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};

#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    reason = "made by the build"
)]
mod generated {
    /// Keys, values and events.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// Permissions.
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    /// The services and their messages.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    /// Locks.
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    /// Elections.
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
}

/// All of `proto/`, as a `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
