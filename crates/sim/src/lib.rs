//! Whole Steadfast nodes in one thread under virtual time, on disks and a network that fail.

pub mod check;
pub mod disk;
pub mod falsehood;
pub mod faults;
pub mod gone;
pub mod hardware;
pub mod history;
pub mod lifetimes;
pub mod logfile;
pub mod nemesis;
pub mod net;
pub mod onlooker;
pub mod operator;
pub mod plan;
pub mod promise;
pub mod recovery;
pub mod run;
pub mod slow_way;
pub mod story;
pub mod subscribers;
pub mod worker;
pub mod workload;
pub mod world;
