//! Tasks that end with their owner.

use steadfast_net::process;
use tokio::sync::watch;

/// The tasks of one part of a node, to which a clone adds. Dropping it without [`Tasks::end`] leaves
/// them running.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    /// Whether they are to end. Each task holds a receiver for as long as it runs.
    end: watch::Sender<bool>,
}

impl Tasks {
    /// Starts a task on the current runtime; at the end it is dropped, whatever it waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut end = self.end.subscribe();
        process::spawn(async move {
            tokio::select! {
                biased;
                // A dropped sender does not mean the end.
                () = ended(&mut end) => {}
                () = task => {}
            }
            drop(end);
        });
    }

    /// Starts a task that ends by itself when everything else has; `end` only waits for it.
    pub(crate) fn spawn_whole(&self, task: impl Future<Output = ()> + Send + 'static) {
        let alive = self.end.subscribe();
        process::spawn(async move {
            task.await;
            drop(alive);
        });
    }

    /// Ends the tasks and waits until all have ended. Must not be called from one of them.
    pub(crate) async fn end(&self) {
        self.end.send_replace(true);
        self.end.closed().await;
    }
}

async fn ended(end: &mut watch::Receiver<bool>) {
    if end.wait_for(|end| *end).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts until dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_a_task_waits_for_nothing_of_it_is_left_after_the_end() {
        let (tasks, left) = (Tasks::default(), Arc::<AtomicUsize>::default());
        let counted = || {
            left.fetch_add(1, Ordering::SeqCst);
            Counted(Arc::clone(&left))
        };
        for _ in 0..100 {
            let holds = counted();
            tasks.spawn(async move {
                let _holds = holds;
                pending::<()>().await;
            });
            let holds = counted();
            tasks.spawn_whole(async move {
                let _holds = holds;
                tokio::task::yield_now().await;
            });
        }
        tasks.end().await;
        assert_eq!(left.load(Ordering::SeqCst), 0);
    }
}
