//! One fixed piece of memory that buffers are carved from, for backends that register it with the
//! kernel.
//!
//! Registered memory must not be freed and used for something else while it is registered. So an
//! arena is one allocation that goes back only when nobody holds it: neither the backend that
//! registered it nor any buffer in it. Buffers come from its untouched end first, and go back to a
//! list of their size; space does not change its size again. What finds no place is taken from the
//! allocator: an arena is an accelerator, not a limit.

use std::alloc::{self, Layout};
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buf::{AlignedBuf, class_of};

/// Memory for buffers, at a fixed address until the last user is gone.
///
/// ```
/// use alluvium_core::io::{Arena, BufPool};
/// let arena = Arena::new(1 << 20).expect("a MiB");
/// let pool = BufPool::new(0).carve_from(Some(arena.clone()));
/// let buf = pool.take(5000);
/// assert!(arena.contains(buf.as_ptr(), buf.capacity()));
/// let too_large = pool.take(2 << 20);
/// assert!(!arena.contains(too_large.as_ptr(), 1));
/// ```
pub struct Arena {
    start: NonNull<u8>,
    layout: Layout,
    places: Mutex<Places>,
}

// SAFETY: the memory is handed out in disjoint pieces, each to one owner; the lists that say which
// are free are behind a lock.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// Free places, as distances from the start.
#[derive(Debug, Default)]
struct Places {
    /// Everything from here on was never handed out.
    untouched: usize,
    /// `free[n]` holds places of the size of class `n`.
    free: Vec<Vec<usize>>,
}

impl Arena {
    /// An arena of `bytes` bytes, rounded up to [`BUFFER_ALIGNMENT`](super::BUFFER_ALIGNMENT); zeroed. `None` when the
    /// memory cannot be had.
    pub fn new(bytes: usize) -> Option<Arc<Self>> {
        let layout = AlignedBuf::layout(bytes)?;
        // SAFETY: the layout's size is at least BUFFER_ALIGNMENT, never zero.
        let start = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        Some(Arc::new(Self {
            start,
            layout,
            places: Mutex::default(),
        }))
    }

    /// Where it starts.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.layout.size()
    }

    /// Whether `len` bytes at `ptr` lie within.
    pub fn contains(&self, ptr: *const u8, len: usize) -> bool {
        let distance = ptr.addr().wrapping_sub(self.start.addr().get());
        distance < self.size() && len <= self.size() - distance
    }

    /// A buffer of at least `capacity` bytes with length zero; `None` when no place is free.
    pub(super) fn take(self: &Arc<Self>, capacity: usize) -> Option<AlignedBuf> {
        let (class, size) = class_of(capacity);
        let place = {
            let mut places = self.lock();
            let recycled = places.free.get_mut(class).and_then(Vec::pop);
            recycled.or_else(|| places.touch(size, self.size()))?
        };
        // SAFETY: `place + size` is within the allocation.
        let ptr = unsafe { self.start.add(place) };
        // SAFETY: these bytes are initialised (the arena was zeroed), and nobody else has them:
        // they came from a list of free places, and go back there when the buffer is dropped.
        Some(unsafe { AlignedBuf::in_arena(ptr, size, Arc::clone(self)) })
    }

    /// Takes back what [`take`](Self::take) gave out.
    pub(super) fn give_back(&self, ptr: NonNull<u8>, size: usize) {
        let place = ptr.addr().get() - self.start.addr().get();
        let (class, _) = class_of(size);
        let mut places = self.lock();
        if places.free.len() <= class {
            places.free.resize_with(class + 1, Vec::new);
        }
        places.free[class].push(place);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // The guarded sections cannot panic half-way through an update that matters.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn touch(&mut self, size: usize, end: usize) -> Option<usize> {
        let place = self.untouched;
        if size > end - place {
            return None;
        }
        self.untouched += size;
        Some(place)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the allocator with this layout; every buffer in it held a
        // reference to the arena, so none is left.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("start", &self.start)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{BUFFER_ALIGNMENT, BufPool};

    #[test]
    fn buffers_do_not_overlap_and_places_are_used_again() {
        let arena = Arena::new(16 * BUFFER_ALIGNMENT).expect("memory");
        let pool = BufPool::new(0).carve_from(Some(Arc::clone(&arena)));
        for round in 0..3_u8 {
            let mut held = vec![];
            for (i, pages) in (0_u8..).zip([1_usize, 2, 4, 1, 8]) {
                let mut buf = pool.take(pages * BUFFER_ALIGNMENT);
                assert!(arena.contains(buf.as_ptr(), buf.capacity()), "{round} {i}");
                buf.resize(pages * BUFFER_ALIGNMENT);
                buf.fill(round * 10 + i);
                held.push(buf.freeze());
            }
            // Full: the next one comes from the allocator, and works as well.
            let mut outside = pool.take(1);
            outside.extend_from_slice(b"x");
            assert!(!arena.contains(outside.as_ptr(), 1));
            for (i, buf) in (0..).zip(&held) {
                assert!(buf.iter().all(|&byte| byte == round * 10 + i));
            }
        }
    }

    #[test]
    fn a_buffer_outlives_all_other_users_of_its_arena() {
        let arena = Arena::new(1 << 16).expect("memory");
        let weak = Arc::downgrade(&arena);
        let pool = BufPool::new(1 << 20).carve_from(Some(arena));
        let mut buf = pool.take(100);
        drop(pool);
        buf.extend_from_slice(&[7; 100]);
        let shared = buf.freeze();
        assert_eq!(shared, [7; 100][..]);
        assert!(weak.upgrade().is_some(), "the buffer holds it");
        drop(shared);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn growing_out_of_the_arena_keeps_the_content() {
        let arena = Arena::new(BUFFER_ALIGNMENT).expect("memory");
        let pool = BufPool::new(0).carve_from(Some(Arc::clone(&arena)));
        let mut buf = pool.take(1);
        for i in 0..2000_u32 {
            buf.extend_from_slice(&i.to_le_bytes());
        }
        assert!(!arena.contains(buf.as_ptr(), 1));
        assert_eq!(&buf[4 * 777..4 * 778], &777_u32.to_le_bytes());
        assert!(
            arena.contains(pool.take(1).as_ptr(), 1),
            "the place is free"
        );
        assert!(!arena.contains(arena.as_ptr(), BUFFER_ALIGNMENT + 1));
        assert!(Arena::new(usize::MAX).is_none());
    }
}
