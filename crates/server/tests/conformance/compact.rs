//! Compaction.

use tonic::Code;

use crate::ask::refused;
use crate::target::{Target, rows};

rows! {
    One:
    a_compaction_may_go_up_to_the_newest_revision_and_never_back,
    a_fresh_store_can_be_compacted_to_nothing;
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

async fn a_compaction_may_go_up_to_the_newest_revision_and_never_back(target: Target) {
    target.put("a", "x").await;
    let last = target.put("a", "y").await;
    refused(target.compact(last + 1).await, Code::OutOfRange, FUTURE);
    target.compact(last).await.unwrap();
    assert_eq!(target.get("a").await.unwrap().mod_revision, last);
    for old in [last, last - 1, 0, -1] {
        refused(target.compact(old).await, Code::OutOfRange, COMPACTED);
    }
    assert_eq!(target.revision().await, last, "it makes no revision");
}

async fn a_fresh_store_can_be_compacted_to_nothing(target: Target) {
    target.compact(0).await.unwrap();
    refused(target.compact(-1).await, Code::OutOfRange, COMPACTED);
}
