//! Memory that direct I/O accepts: aligned buffers, and a bounded pool that recycles them.
//!
//! A buffer is filled while it is owned ([`AlignedBuf`]), then frozen into [`Bytes`] that the
//! kernel, the tail cache and readers share without a copy. When the last of them lets go, the
//! memory returns to the pool it came from, or to the allocator.

use std::alloc::{self, Layout};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::arena::Arena;

/// Alignment of every buffer's address and capacity, in bytes: enough for any device's direct I/O.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// An owned, page-aligned byte buffer with a length and a capacity.
///
/// ```
/// use alluvium_core::io::AlignedBuf;
/// let mut buf = AlignedBuf::with_capacity(100);
/// buf.extend_from_slice(b"abc");
/// assert_eq!(&buf[..], b"abc");
/// assert_eq!(buf.capacity(), 4096);
/// buf.pad_to(512);
/// let frozen = buf.freeze();
/// assert_eq!(frozen.len(), 512);
/// assert_eq!(frozen.as_ptr() as usize % 4096, 0);
/// ```
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    /// Bytes from the start that have been written since the memory was allocated; never below
    /// `len`. Memory is not zeroed in advance: most of it is overwritten anyway.
    initialised: usize,
    capacity: usize,
    home: Home,
}

/// Where the memory of a buffer goes when it is dropped.
enum Home {
    Allocator,
    Pool(Arc<PoolInner>),
    Arena(Arc<Arena>),
}

// SAFETY: the memory is owned exclusively by this value; nothing in it is tied to a thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads the memory.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer that can hold at least `capacity` bytes, rounded up to [`BUFFER_ALIGNMENT`].
    ///
    /// Aborts like every allocation of the standard library when memory is exhausted; sizes that
    /// come from a disk go through [`try_with_capacity`](Self::try_with_capacity).
    pub fn with_capacity(capacity: usize) -> Self {
        match Self::try_with_capacity(capacity) {
            Some(buf) => buf,
            None => alloc::handle_alloc_error(Layout::new::<[u8; BUFFER_ALIGNMENT]>()),
        }
    }

    /// As [`with_capacity`](Self::with_capacity), but `None` when the memory cannot be had.
    pub fn try_with_capacity(capacity: usize) -> Option<Self> {
        let layout = Self::layout(capacity)?;
        // SAFETY: the layout's size is at least BUFFER_ALIGNMENT, never zero.
        let raw = unsafe { alloc::alloc(layout) };
        Some(Self {
            ptr: NonNull::new(raw)?,
            len: 0,
            initialised: 0,
            capacity: layout.size(),
            home: Home::Allocator,
        })
    }

    /// A buffer of `capacity` bytes at `ptr`, a place of `arena`.
    ///
    /// # Safety
    /// The bytes are initialised and nobody else's until the buffer has given them back.
    pub(super) unsafe fn in_arena(ptr: NonNull<u8>, capacity: usize, arena: Arc<Arena>) -> Self {
        Self {
            ptr,
            len: 0,
            initialised: capacity,
            capacity,
            home: Home::Arena(arena),
        }
    }

    pub(super) fn layout(capacity: usize) -> Option<Layout> {
        let size = capacity.max(1).checked_next_multiple_of(BUFFER_ALIGNMENT)?;
        Layout::from_size_align(size, BUFFER_ALIGNMENT).ok()
    }

    /// How many bytes fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory that it keeps from others: an allocator loses up to a page to the alignment.
    pub(crate) fn held_bytes(&self) -> usize {
        match self.home {
            Home::Arena(_) => self.capacity,
            Home::Allocator | Home::Pool(_) => self.capacity + BUFFER_ALIGNMENT,
        }
    }

    /// How many more bytes fit.
    pub fn remaining(&self) -> usize {
        self.capacity - self.len
    }

    /// Forgets the content.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Shortens the content to `len`; no effect when it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends `bytes`, growing (by a copy) when they do not fit.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: `reserve` made room for `bytes.len()` bytes behind `len` in this allocation, and
        // `bytes` is borrowed from elsewhere: `self` is borrowed mutably.
        unsafe {
            let end = self.ptr.as_ptr().add(self.len);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
        }
        self.grow_to(self.len + bytes.len());
    }

    /// The first `len` bytes have been written: they are the content now.
    fn grow_to(&mut self, len: usize) {
        self.len = len;
        self.initialised = self.initialised.max(len);
    }

    /// Zeroes what was never written up to `end`, which lies within the capacity.
    fn initialise_to(&mut self, end: usize) {
        if let Some(never_written) = end.checked_sub(self.initialised) {
            // SAFETY: `initialised <= end <= capacity`, all within this allocation.
            unsafe {
                let from = self.ptr.as_ptr().add(self.initialised);
                from.write_bytes(0, never_written);
            }
            self.initialised = end;
        }
    }

    /// Appends zeros until the length is a multiple of `alignment` (a power of two).
    pub fn pad_to(&mut self, alignment: usize) {
        let target = self.len.next_multiple_of(alignment);
        self.resize(target);
    }

    /// Sets the length; new bytes are zero.
    pub fn resize(&mut self, len: usize) {
        if len > self.len {
            self.reserve(len - self.len);
            // SAFETY: `reserve` made room for all of `[self.len, len)` in this allocation.
            unsafe {
                let end = self.ptr.as_ptr().add(self.len);
                end.write_bytes(0, len - self.len);
            }
        }
        self.grow_to(len);
    }

    /// Makes room for `additional` bytes beyond the length, at least doubling when it must grow.
    pub fn reserve(&mut self, additional: usize) {
        if additional <= self.remaining() {
            return;
        }
        let wanted = self
            .len
            .saturating_add(additional)
            .max(self.capacity.saturating_mul(2));
        let mut grown = Self::with_capacity(wanted);
        grown.extend_from_slice(self);
        *self = grown;
    }

    /// The bytes between length and capacity. They are initialised (zero or older content).
    pub fn spare_capacity_mut(&mut self) -> &mut [u8] {
        self.initialise_to(self.capacity);
        // SAFETY: [ptr, ptr + capacity) is one allocation, initialised to its end by the line
        // above, and `len <= capacity` always holds.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.ptr.as_ptr().add(self.len),
                self.capacity - self.len,
            )
        }
    }

    /// Declares that the first `len` bytes are content, after something outside wrote them.
    ///
    /// # Panics
    /// When `len` is larger than what was handed out for writing: a backend that claims that has
    /// a bug.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.initialised,
            "length {len} beyond the {} bytes that were handed out",
            self.initialised
        );
        self.len = len;
    }

    /// Start of the memory, for a backend that lets the kernel write up to the capacity. What was
    /// never written is zeroed first, so a kernel that writes less exposes nothing; a buffer that
    /// comes from a pool pays that once in its life.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.initialise_to(self.capacity);
        self.ptr.as_ptr()
    }

    /// Turns the content into shared, immutable bytes without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised and owned by this value.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and the exclusive borrow makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.home, Home::Allocator) {
            Home::Allocator => {}
            Home::Pool(pool) => {
                pool.give_back(Self {
                    ptr: self.ptr,
                    len: 0,
                    initialised: self.initialised,
                    capacity: self.capacity,
                    home: Home::Allocator,
                });
                return;
            }
            Home::Arena(arena) => {
                arena.give_back(self.ptr, self.capacity);
                return;
            }
        }
        if let Some(layout) = Self::layout(self.capacity) {
            // SAFETY: the pointer came from the allocator with this very layout (capacity is
            // already a multiple of the alignment), and it is freed once: memory of a pool or an
            // arena was handed on above.
            unsafe { alloc::dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// A bounded pool of [`AlignedBuf`]s in size classes.
///
/// The bound is on idle memory: what the pool keeps, not what is out. Buffers may be dropped on
/// any thread.
///
/// ```
/// use alluvium_core::io::BufPool;
/// let pool = BufPool::new(1 << 20);
/// let first = pool.take(5000);
/// let address = first.as_ptr();
/// drop(first);
/// assert_eq!(pool.idle_bytes(), 8192);
/// assert_eq!(pool.take(6000).as_ptr(), address);
/// ```
#[derive(Debug, Clone)]
pub struct BufPool {
    inner: Arc<PoolInner>,
    arena: Option<Arc<Arena>>,
}

struct PoolInner {
    idle_bytes_max: usize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    bytes: usize,
    /// By the size classes of `class_of`.
    classes: Vec<Vec<AlignedBuf>>,
}

impl BufPool {
    /// A pool that keeps at most `idle_bytes_max` bytes of unused buffers.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self {
            inner: Arc::new(PoolInner {
                idle_bytes_max,
                idle: Mutex::default(),
            }),
            arena: None,
        }
    }

    /// Takes buffers from `arena` as long as it has room for them; they do not count as idle.
    #[must_use]
    pub fn carve_from(self, arena: Option<Arc<Arena>>) -> Self {
        Self { arena, ..self }
    }

    /// A buffer of at least `capacity` bytes with length zero. Recycled bytes beyond the length
    /// are whatever they were; every method that lengthens a buffer overwrites them.
    pub fn take(&self, capacity: usize) -> AlignedBuf {
        if let Some(buf) = self.arena.as_ref().and_then(|arena| arena.take(capacity)) {
            return buf;
        }
        let (class, size) = class_of(capacity);
        let recycled = {
            let mut idle = self.inner.lock();
            let found = idle.classes.get_mut(class).and_then(Vec::pop);
            if found.is_some() {
                idle.bytes -= size;
            }
            found
        };
        let mut buf = recycled.unwrap_or_else(|| AlignedBuf::with_capacity(size));
        buf.home = Home::Pool(Arc::clone(&self.inner));
        buf
    }

    /// Bytes that lie unused in the pool now.
    pub fn idle_bytes(&self) -> usize {
        self.inner.lock().bytes
    }
}

impl PoolInner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        // The guarded sections cannot panic half-way through an update that matters.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, buf: AlignedBuf) {
        let (class, size) = class_of(buf.capacity);
        let mut idle = self.lock();
        if size != buf.capacity || idle.bytes + size > self.idle_bytes_max {
            drop(idle);
            drop(buf);
            return;
        }
        if idle.classes.len() <= class {
            idle.classes.resize_with(class + 1, Vec::new);
        }
        idle.bytes += size;
        idle.classes[class].push(buf);
    }
}

impl fmt::Debug for PoolInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolInner")
            .field("idle_bytes_max", &self.idle_bytes_max)
            .finish_non_exhaustive()
    }
}

/// Size class and size in bytes of the smallest class that holds `capacity`. Eight classes of one
/// page more each, then four between powers of two: at most a quarter of a buffer is unused.
pub(super) fn class_of(capacity: usize) -> (usize, usize) {
    let pages = capacity.max(1).div_ceil(BUFFER_ALIGNMENT);
    if pages <= 8 {
        return (pages - 1, pages * BUFFER_ALIGNMENT);
    }
    let power = (pages - 1).ilog2() as usize;
    let step = 1 << (power - 2);
    let steps = pages.div_ceil(step);
    (
        8 + 4 * (power - 3) + (steps - 5),
        steps.saturating_mul(step).saturating_mul(BUFFER_ALIGNMENT),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_keeps_content_and_alignment() {
        let mut buf = AlignedBuf::with_capacity(1);
        for n in 0..200_u8 {
            buf.extend_from_slice(&[n; 400]);
        }
        assert_eq!(buf.len(), 80_000);
        assert_eq!(&buf[77 * 400 - 1..=77 * 400], [76, 77]);
        assert_eq!(buf.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
    }

    #[test]
    fn a_recycled_buffer_shows_no_old_bytes_through_safe_growth() {
        let pool = BufPool::new(1 << 20);
        let mut buf = pool.take(4096);
        buf.extend_from_slice(&[0xAA; 4096]);
        drop(buf.freeze());
        let mut again = pool.take(4096);
        again.resize(4096);
        assert!(again.iter().all(|&b| b == 0));
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_bound() {
        let pool = BufPool::new(8192);
        let held: Vec<_> = (0..4).map(|_| pool.take(4096)).collect();
        drop(held);
        assert_eq!(pool.idle_bytes(), 8192);
        drop(pool.take(1 << 20));
        assert_eq!(pool.idle_bytes(), 8192);
    }

    #[test]
    fn size_classes_are_distinct_ascending_and_at_most_a_quarter_too_large() {
        let mut last = (0, BUFFER_ALIGNMENT);
        for pages in 1..700_usize {
            let wanted = pages * BUFFER_ALIGNMENT;
            let (class, size) = class_of(wanted);
            assert!(size >= wanted && size - wanted <= wanted / 4, "{pages}");
            assert_eq!(class_of(size), (class, size), "{pages}");
            assert!(
                (class, size) == last || (class == last.0 + 1 && size > last.1) || pages == 1,
                "{pages}"
            );
            last = (class, size);
        }
    }

    #[test]
    fn memory_that_was_never_written_reads_as_zero() {
        let mut buf = AlignedBuf::with_capacity(8192);
        buf.extend_from_slice(&[7; 100]);
        buf.truncate(10);
        assert!(buf.spare_capacity_mut()[90..].iter().all(|&b| b == 0));
        buf.set_len(8192);
        assert!(buf[100..].iter().all(|&b| b == 0));
    }

    #[test]
    fn absurd_sizes_are_refused_not_attempted() {
        assert!(AlignedBuf::try_with_capacity(usize::MAX).is_none());
        assert!(AlignedBuf::try_with_capacity(isize::MAX as usize).is_none());
    }
}
