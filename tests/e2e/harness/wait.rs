//! Waiting for something to become true, with the last thing seen in the failure. There are no fixed sleeps elsewhere.

use std::panic::Location;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(30);

/// What one look can say: done, or not yet (and what was seen instead).
pub trait Look {
    type Out;
    fn look(self) -> Result<Self::Out, String>;
}

impl<T> Look for Option<T> {
    type Out = T;
    fn look(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T, E: std::fmt::Display> Look for Result<T, E> {
    type Out = T;
    fn look(self) -> Result<T, String> {
        self.map_err(|e| e.to_string())
    }
}

impl Look for bool {
    type Out = ();
    fn look(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

/// Looks again and again until the look succeeds; panics, naming the caller and the last observation, after `timeout`.
#[track_caller]
pub fn until<L: Look>(what: &str, timeout: Duration, mut look: impl AsyncFnMut() -> L) -> impl Future<Output = L::Out> {
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + timeout;
        let mut last = "never looked".to_owned();
        loop {
            // A look that hangs must not outlive the deadline, and must not hide what was seen before it.
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left.max(POLL), look()).await.map(Look::look) {
                Ok(Ok(out)) => return out,
                Ok(Err(seen)) => last = seen,
                Err(_) => last = format!("the look itself did not return; before it: {last}"),
            }
            assert!(
                Instant::now() < deadline,
                "gave up after {timeout:?} waiting for {what} ({caller}); last seen: {last}"
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Asserts that something stays true for `span`: for "nobody is disconnected" and the like.
#[track_caller]
pub fn throughout<L: Look>(what: &str, span: Duration, mut look: impl AsyncFnMut() -> L) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let end = Instant::now() + span;
        while Instant::now() < end {
            if let Err(seen) = look().await.look() {
                panic!("{what} did not hold for {span:?} ({caller}); seen: {seen}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
