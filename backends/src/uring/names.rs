//! System calls that may wait for the file system's journal, on a thread of their own: those on
//! names, and changes of a file's length.
//!
//! io_uring has most of them, but in newer kernels than we support, and hands them to a thread as
//! well. A call whose future is dropped is made all the same; what it opened is closed then.

use std::io;
use std::sync::mpsc;
use std::thread;

use futures_channel::oneshot;

use crate::shard::caught;

type Job = Box<dyn FnOnce() + Send>;

/// The thread; it ends when this is dropped and everything that was asked of it is done.
#[derive(Debug)]
pub(super) struct Names {
    jobs: mpsc::Sender<Job>,
}

impl Names {
    /// Starts it, named after the calling thread.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let shard = thread::current();
        let name = format!("{}-io", shard.name().unwrap_or("alluvium"));
        let work = move || queue.into_iter().for_each(|job| job());
        thread::Builder::new().name(name).spawn(work)?;
        Ok(Self { jobs })
    }

    /// Makes a call there.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let lost = || io::Error::other("the call was lost");
        let (reply, answer) = oneshot::channel();
        let job = move || {
            if let Some(result) = caught(call) {
                // Who has gone needs no answer.
                reply.send(result).ok();
            }
        };
        self.jobs.send(Box::new(job)).map_err(|_| lost())?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}
