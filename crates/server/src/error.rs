//! What a request can be refused with: each with the code and the text that clients of etcd know.

use tonic::{Code, Status};

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal;)*) => {
        /// Why a request failed. Clients compare the texts, so none of them may change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum Error {
            $(
                #[doc = $text]
                $(#[$doc])*
                #[error($text)]
                $name,
            )*
        }

        impl Error {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The gRPC code that goes with the text.
            pub fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }
        }
    };
}

errors! {
    EmptyKey = InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound = InvalidArgument, "etcdserver: key not found";
    ValueProvided = InvalidArgument, "etcdserver: value is provided";
    LeaseProvided = InvalidArgument, "etcdserver: lease is provided";
    TooManyOps = InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey = InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidSortOption = InvalidArgument, "etcdserver: invalid sort option";
    RequestTooLarge = InvalidArgument, "etcdserver: request is too large";
    /// What a replica would be told by the master is more than fits into a call. It did not happen.
    AnswerTooLarge = ResourceExhausted, "etcdserver: the answer is too large for a member that is not the leader";
    Compacted = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NoSpace = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    TooManyRequests = ResourceExhausted, "etcdserver: too many requests";
    LeaseNotFound = NotFound, "etcdserver: requested lease not found";
    LeaseExists = FailedPrecondition, "etcdserver: lease already exists";
    LeaseTtlTooLarge = OutOfRange, "etcdserver: too large lease TTL";
    MemberNotFound = NotFound, "etcdserver: member not found";
    BadLeaderTransferee = FailedPrecondition, "etcdserver: bad leader transferee";
    RootUserMissing = FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleMissing = FailedPrecondition, "etcdserver: root user does not have root role";
    UserExists = FailedPrecondition, "etcdserver: user name already exists";
    UserEmpty = InvalidArgument, "etcdserver: user name is empty";
    UserNotFound = FailedPrecondition, "etcdserver: user name not found";
    RoleExists = FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound = FailedPrecondition, "etcdserver: role name not found";
    RoleEmpty = InvalidArgument, "etcdserver: role name is empty";
    AuthFailed = InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven = InvalidArgument, "etcdserver: permission not given";
    PermissionDenied = PermissionDenied, "etcdserver: permission denied";
    RoleNotGranted = FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted = FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled = FailedPrecondition, "etcdserver: authentication is not enabled";
    InvalidAuthToken = Unauthenticated, "etcdserver: invalid auth token";
    InvalidAuthManagement = InvalidArgument, "etcdserver: invalid auth management";
    AuthRevisionOld = InvalidArgument, "etcdserver: revision of auth store is old";
    /// It certainly did not happen.
    NoLeader = Unavailable, "etcdserver: no leader";
    NotLeader = FailedPrecondition, "etcdserver: not leader";
    /// It certainly did not happen.
    LeaderChanged = Unavailable, "etcdserver: leader changed";
    Stopped = Unavailable, "etcdserver: server stopped";
    /// A read that could not be shown to be current in time.
    Timeout = Unavailable, "etcdserver: request timed out";
    /// A write whose outcome is not known: it may have happened, or may still happen.
    OutcomeUnknown = Unknown, "context deadline exceeded";
    Corrupt = DataLoss, "etcdserver: corrupt cluster";
    NotSupportedForLearner = Unavailable, "etcdserver: rpc not supported for learner";
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
