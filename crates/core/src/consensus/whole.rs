//! Calls to openraft that run to completion even if their caller stops waiting.
//!
//! A call that finds openraft's core ended waits until the core has been taken down, and all other
//! calls wait for the first that did. If that first one is dropped meanwhile, the others panic, and
//! so does every later call, including shutdown (alpha.37). That happens easily: a master whose
//! disk fails loses its term, its clients and its connections, each of which waits for a call, at
//! the moment when its core ends.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt};

use crate::consensus::{Consensus, ConsensusRaft};

impl Consensus {
    /// A call that a task of this node completes if the call is dropped while it waits.
    pub(super) fn whole<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        call: impl FnOnce(ConsensusRaft) -> F,
    ) -> Whole<'_, BoxFuture<'static, T>> {
        Whole::new(self, self.seeded(call(self.raft.clone())).boxed())
    }

    /// As [`Consensus::whole`], for each item of a stream.
    pub(super) fn whole_items<T: Send + 'static>(
        &self,
        items: impl Stream<Item = T> + Send + 'static,
    ) -> Whole<'_, BoxStream<'static, T>> {
        Whole::new(self, items.boxed())
    }
}

/// See the module.
pub(super) struct Whole<'a, C: Goes> {
    consensus: &'a Consensus,
    /// `None` once it continues elsewhere.
    call: Option<C>,
    /// Whether it was started, and has to be completed.
    is_pending: bool,
}

impl<'a, C: Goes> Whole<'a, C> {
    fn new(consensus: &'a Consensus, call: C) -> Self {
        Self {
            consensus,
            call: Some(call),
            is_pending: false,
        }
    }

    fn poll_with<T>(&mut self, poll: impl FnOnce(&mut C) -> Poll<T>) -> Poll<T> {
        let call = self
            .call
            .as_mut()
            .expect("it goes on elsewhere when dropped");
        let polled = poll(call);
        self.is_pending = polled.is_pending();
        polled
    }
}

impl<T: Send + 'static> Future for Whole<'_, BoxFuture<'static, T>> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.poll_with(|call| call.poll_unpin(cx))
    }
}

impl<T: Send + 'static> Stream for Whole<'_, BoxStream<'static, T>> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.poll_with(|items| items.poll_next_unpin(cx))
    }
}

impl<C: Goes> Drop for Whole<'_, C> {
    fn drop(&mut self) {
        let call = self.call.take().filter(|_| self.is_pending);
        // Without a runtime, nothing of this node continues.
        if let Some(call) = call
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let mut end = self.consensus.shutdown_state.subscribe();
            let rest = self.consensus.seeded(call.finish());
            self.consensus.tasks.spawn_whole(async move {
                tokio::select! {
                    biased;
                    () = rest => {}
                    // By now the core has been taken down.
                    _ = end.wait_for(|state| state.begun) => {}
                }
            });
        }
    }
}

/// A call that can be completed without anyone to take the result.
pub(super) trait Goes: Unpin {
    fn finish(self) -> BoxFuture<'static, ()>;
}

impl<T: Send + 'static> Goes for BoxFuture<'static, T> {
    fn finish(self) -> BoxFuture<'static, ()> {
        self.map(drop).boxed()
    }
}

impl<T: Send + 'static> Goes for BoxStream<'static, T> {
    /// Completes only the item that is awaited.
    fn finish(mut self) -> BoxFuture<'static, ()> {
        async move { drop(self.next().await) }.boxed()
    }
}
