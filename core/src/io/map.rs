//! Files in memory: what [`IoBackend::map`](super::IoBackend::map) returns.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// The start of a file, mapped into memory for reading. Clones share the mapping, and so do the
/// [`Bytes`] made of it; it ends with the last of them.
///
/// A mapped file must neither be written to nor become shorter: bytes that were handed out would
/// change, and an access behind the end kills the process (`SIGBUS`). Who reuses files asks
/// [`IoBackend::is_mapped`](super::IoBackend::is_mapped) first.
///
/// ```
/// use alluvium_core::io::FileMap;
/// let map = FileMap::new(std::sync::Arc::new(*b"a file"));
/// assert_eq!(map.bytes(2..6).as_deref(), Some(b"file".as_slice()));
/// assert_eq!(map.bytes(2..7), None);
/// ```
#[derive(Clone)]
pub struct FileMap {
    memory: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

impl FileMap {
    /// Of memory that shows the file.
    pub fn new(memory: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self { memory }
    }

    /// The bytes in a range, without a copy; `None` where they are not all mapped. Reading them
    /// waits for the disk if they are not [populated](super::IoBackend::populate).
    pub fn bytes(&self, range: Range<usize>) -> Option<Bytes> {
        self.as_ref().get(range.clone())?;
        Some(Bytes::from_owner(self.clone()).slice(range))
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        (*self.memory).as_ref()
    }
}

impl fmt::Debug for FileMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.as_ref().len();
        f.debug_struct("FileMap").field("len", &len).finish()
    }
}
