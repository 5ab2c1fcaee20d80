//! Operations that the kernel may still work on, and who waits for them.
//!
//! Pure bookkeeping without system calls, so that Miri can run its tests. The rule that everything
//! rests on: **what an operation owns stays in here from [`InFlight::start`] until
//! [`InFlight::complete`]**, whatever becomes of the future that waits for it.

use std::task::{Context, Poll, Waker};

use super::slab::{Key, Slab};

/// All operations of a ring. `R` is what one owns: its buffer and its descriptor.
#[derive(Debug)]
pub(super) struct InFlight<R> {
    ops: Slab<Op<R>>,
    in_kernel: usize,
}

#[derive(Debug)]
struct Op<R> {
    owned: R,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not complete; the waker of who waits, once it has been polled.
    Awaited(Option<Waker>),
    /// Not complete, and nobody waits any more.
    Abandoned,
    /// Complete; the kernel is done with what the operation owns.
    Done(i32),
}

/// What is to be done after a completion, when no borrow of the bookkeeping is held any more:
/// both may run code of others.
#[derive(Debug)]
#[must_use]
pub(super) enum Completed<R> {
    /// Wake who waits.
    Wake(Waker),
    /// Nobody waits: drop what the operation owned.
    Release(R),
    /// Nothing: the future was not polled yet, or the key is unknown.
    Nothing,
}

impl<R> Default for InFlight<R> {
    fn default() -> Self {
        Self {
            ops: Slab::default(),
            in_kernel: 0,
        }
    }
}

impl<R> InFlight<R> {
    /// Takes in an operation that is about to be handed to the kernel.
    pub(super) fn start(&mut self, owned: R) -> Key {
        self.in_kernel += 1;
        self.ops.insert(Op {
            owned,
            state: State::Awaited(None),
        })
    }

    /// Notes the result that the kernel gave.
    pub(super) fn complete(&mut self, key: Key, result: i32) -> Completed<R> {
        let Some(op) = self.ops.get_mut(key) else {
            return Completed::Nothing;
        };
        let abandoned = match &mut op.state {
            State::Awaited(waker) => {
                let waker = waker.take();
                op.state = State::Done(result);
                self.in_kernel -= 1;
                return waker.map_or(Completed::Nothing, Completed::Wake);
            }
            State::Abandoned => self.ops.remove(key),
            // The kernel completes an operation once.
            State::Done(_) => return Completed::Nothing,
        };
        self.in_kernel -= 1;
        abandoned.map_or(Completed::Nothing, |op| Completed::Release(op.owned))
    }

    /// Result and belongings of an operation that is done; `None` when the key is unknown.
    pub(super) fn poll(&mut self, key: Key, cx: &mut Context<'_>) -> Poll<Option<(i32, R)>> {
        let Some(op) = self.ops.get_mut(key) else {
            return Poll::Ready(None);
        };
        match &mut op.state {
            State::Done(result) => {
                let result = *result;
                let op = self.ops.remove(key);
                Poll::Ready(op.map(|op| (result, op.owned)))
            }
            State::Awaited(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            State::Abandoned => Poll::Pending,
        }
    }

    /// Nobody waits any more. Returns what may be dropped now; what the kernel still uses stays.
    #[must_use]
    pub(super) fn abandon(&mut self, key: Key) -> Option<R> {
        let op = self.ops.get_mut(key)?;
        if let State::Done(_) = op.state {
            return self.ops.remove(key).map(|op| op.owned);
        }
        op.state = State::Abandoned;
        None
    }

    /// Operations that the kernel may still work on.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A buffer as an operation owns it, and a count of those that live.
    struct Buffer {
        bytes: Vec<u8>,
        live: Rc<Cell<usize>>,
    }

    impl Buffer {
        fn new(live: &Rc<Cell<usize>>) -> Self {
            live.set(live.get() + 1);
            Self {
                bytes: vec![0; 16],
                live: Rc::clone(live),
            }
        }
    }

    impl Drop for Buffer {
        fn drop(&mut self) {
            self.live.set(self.live.get() - 1);
        }
    }

    /// The kernel's side: an address that it writes to at any time before it completes.
    struct Kernel {
        key: Key,
        address: *mut u8,
    }

    impl Kernel {
        fn submit(ops: &mut InFlight<Buffer>, mut buffer: Buffer) -> Self {
            let address = buffer.bytes.as_mut_ptr();
            let key = ops.start(buffer);
            Self { key, address }
        }

        fn work(&self) {
            // SAFETY: what is tested: the operation owns the 16 bytes until it completes.
            unsafe { self.address.write_bytes(0xA5, 16) };
        }
    }

    fn poll(ops: &mut InFlight<Buffer>, key: Key) -> Poll<Option<(i32, Buffer)>> {
        ops.poll(key, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_result_waits_for_its_future() {
        let (mut ops, live) = (InFlight::default(), Rc::default());
        let kernel = Kernel::submit(&mut ops, Buffer::new(&live));
        assert!(poll(&mut ops, kernel.key).is_pending());
        kernel.work();
        assert!(matches!(ops.complete(kernel.key, 7), Completed::Wake(_)));
        assert_eq!(ops.in_kernel(), 0);
        let Poll::Ready(Some((7, buffer))) = poll(&mut ops, kernel.key) else {
            panic!("the result is lost");
        };
        assert_eq!(buffer.bytes, [0xA5; 16]);
        drop(buffer);
        assert_eq!(live.get(), 0);
        assert!(matches!(poll(&mut ops, kernel.key), Poll::Ready(None)));
    }

    #[test]
    fn an_abandoned_buffer_lives_until_the_kernel_is_done() {
        let (mut ops, live) = (InFlight::default(), Rc::default());
        let kernels: Vec<_> = (0..50)
            .map(|_| Kernel::submit(&mut ops, Buffer::new(&live)))
            .collect();
        for kernel in &kernels {
            assert!(ops.abandon(kernel.key).is_none());
        }
        assert_eq!((live.get(), ops.in_kernel()), (50, 50));
        // More operations move the bookkeeping about, never the memory.
        let more: Vec<_> = (0..500)
            .map(|_| Kernel::submit(&mut ops, Buffer::new(&live)))
            .collect();
        for kernel in kernels.iter().rev().chain(&more) {
            kernel.work();
            match ops.complete(kernel.key, 0) {
                Completed::Release(buffer) => assert_eq!(buffer.bytes, [0xA5; 16]),
                other => assert!(matches!(other, Completed::Nothing)),
            }
        }
        assert_eq!((live.get(), ops.in_kernel()), (500, 0));
        for kernel in more {
            drop(ops.abandon(kernel.key).expect("it is done"));
        }
        assert_eq!(live.get(), 0);
    }

    #[test]
    fn a_stray_completion_touches_nothing() {
        let (mut ops, live) = (InFlight::default(), Rc::default());
        let first = Kernel::submit(&mut ops, Buffer::new(&live));
        assert!(matches!(ops.complete(first.key, 1), Completed::Nothing));
        assert!(matches!(ops.complete(first.key, 2), Completed::Nothing));
        assert!(matches!(
            poll(&mut ops, first.key),
            Poll::Ready(Some((1, _)))
        ));
        let second = Kernel::submit(&mut ops, Buffer::new(&live));
        assert!(matches!(ops.complete(first.key, 3), Completed::Nothing));
        assert_eq!(ops.in_kernel(), 1, "the second is still under way");
        second.work();
        assert!(poll(&mut ops, second.key).is_pending());
    }
}
