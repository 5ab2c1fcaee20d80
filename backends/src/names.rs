//! System calls that may wait for the file system's journal, on a thread beside the shard's: those on
//! names, and changes of a file's length.
//!
//! One thread makes them one after another, on every backend. io_uring has most of them, but in newer
//! kernels than we support, and hands them to a thread as well; the runtimes' pools make a thread for
//! each, or wait on the shard's for a place. A call whose future is dropped is made all the same; what
//! it opened is closed then.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;

use crate::shard::caught;

type Job = Box<dyn FnOnce() + Send>;

/// How long [`Names::finish`] waits. A call that takes longer is on a disk that no longer answers.
const FINISH_MAX: Duration = Duration::from_secs(30);

/// The thread; it ends when this is dropped and everything that was asked of it is done.
#[derive(Debug)]
pub(crate) struct Names {
    jobs: mpsc::Sender<Job>,
    /// Nothing may begin any more, and nobody is told of what ends.
    finished: Arc<AtomicBool>,
}

impl Names {
    /// Starts it, named after the calling thread and with its cores.
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let shard = thread::current();
        let name = format!("{}-io", shard.name().unwrap_or("alluvium"));
        let work = move || {
            for job in queue {
                // A waker is code of others.
                caught(job);
            }
        };
        thread::Builder::new().name(name).spawn(work)?;
        Ok(Self {
            jobs,
            finished: Arc::default(),
        })
    }

    /// Makes a call there, unless [`finish`](Self::finish) has been called.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let lost = || io::Error::other("the call was lost");
        if self.finished.load(Ordering::Relaxed) {
            return Err(io::Error::other("the shard has ended"));
        }
        let (reply, answer) = oneshot::channel();
        let finished = Arc::clone(&self.finished);
        let job = move || {
            // Who has gone needs no answer. And the shard that waits in `finish` takes no wakes: one
            // that waited for its room would keep it waiting.
            if let Some(result) = caught(call)
                && !finished.load(Ordering::Relaxed)
            {
                reply.send(result).ok();
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| lost())?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Makes a call on a path there.
    pub(crate) async fn on<T: Send + 'static>(
        &self,
        path: &Path,
        call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = path.to_path_buf();
        self.run(move || call(&path)).await
    }

    /// See [`alluvium_core::io::IoBackend::finish_calls`].
    pub(crate) fn finish(&self) -> bool {
        self.finished.store(true, Ordering::Relaxed);
        let (ended, has_ended) = mpsc::sync_channel(1);
        let last = move || {
            // Who no longer waits needs no word.
            ended.send(()).ok();
        };
        // A thread that has gone has nothing left to do.
        self.jobs.send(Box::new(last)).is_err()
            || has_ended.recv_timeout(FINISH_MAX) != Err(RecvTimeoutError::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_was_begun_is_waited_for_also_when_nobody_wants_its_result() {
        let names = Names::start().expect("it starts");
        let (go, gone) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let call = names.run(move || {
            gone.recv().expect("it is sent");
            is_done.store(true, Ordering::Relaxed);
            Ok(())
        });
        assert!(call.now_or_never().is_none());
        assert!(!done.load(Ordering::Relaxed));
        thread::spawn(move || go.send(()));
        assert!(names.finish());
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn nothing_begins_once_it_has_finished() {
        let names = Names::start().expect("it starts");
        assert!(names.finish());
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let call = names.run(move || {
            begins.store(true, Ordering::Relaxed);
            Ok(())
        });
        assert!(call.now_or_never().expect("it is refused").is_err());
        assert!(names.finish());
        assert!(!begun.load(Ordering::Relaxed));
    }

    #[test]
    fn a_panic_in_a_call_is_an_error_of_that_call_alone() {
        let names = Names::start().expect("it starts");
        let panics = names.run(|| -> io::Result<()> { panic!("as a test wants it") });
        let next = names.run(|| Ok(7));
        let (panicked, next) = futures_executor::block_on(futures_util::future::join(panics, next));
        assert_eq!(
            panicked.expect_err("it panicked").to_string(),
            "the call was lost"
        );
        assert_eq!(next.expect("it is made"), 7);
        assert!(names.finish());
    }
}
