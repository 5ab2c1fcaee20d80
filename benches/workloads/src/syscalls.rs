//! Counts the system calls of this process, where the kernel lets us.
//!
//! The tracepoint `raw_syscalls:sys_enter` counts them all, io_uring's among them. It takes a
//! mounted tracefs and the right to use perf events. Counting makes each call a little slower, and
//! that for all contenders alike.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::FromRawFd;

/// Counts system calls of the thread that opened it and of all threads started below it since.
#[derive(Debug)]
pub struct SyscallCounter {
    event: Result<File, String>,
}

/// The first part of the kernel's `perf_event_attr`, as of version 5 of the structure.
#[repr(C)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample_kind: u64,
    read_format: u64,
    flags: u64,
    rest: [u64; 8],
}

const KIND_TRACEPOINT: u32 = 2;
const FLAG_INHERIT: u64 = 1 << 1;
const FLAG_CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
const TRACING: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

impl SyscallCounter {
    /// Opens the counter. Threads that exist already are not counted: open it before a runtime is
    /// started.
    pub fn open() -> Self {
        Self {
            event: open_event(),
        }
    }

    /// A counter that counts nothing, for the given reason.
    pub fn off(why: impl Into<String>) -> Self {
        Self {
            event: Err(why.into()),
        }
    }

    /// Why nothing is counted; `None` when it is.
    pub fn refusal(&self) -> Option<&str> {
        self.event.as_ref().err().map(String::as_str)
    }

    /// System calls so far; `None` when they cannot be counted.
    pub fn read(&self) -> Option<u64> {
        let mut count = [0; 8];
        let mut event = self.event.as_ref().ok()?;
        event.read_exact(&mut count).ok()?;
        Some(u64::from_ne_bytes(count))
    }
}

fn open_event() -> Result<File, String> {
    let id = TRACING.iter().find_map(|root| {
        fs::read_to_string(format!("{root}/events/raw_syscalls/sys_enter/id")).ok()
    });
    let Some(id) = id else {
        return Err("no tracefs is mounted, or it may not be read".to_owned());
    };
    let config = id.trim().parse().map_err(|_| format!("odd id {id:?}"))?;
    let attributes = EventAttributes {
        kind: KIND_TRACEPOINT,
        size: u32::try_from(size_of::<EventAttributes>()).unwrap_or(0),
        config,
        period: 0,
        sample_kind: 0,
        read_format: 0,
        flags: FLAG_INHERIT,
        rest: [0; 8],
    };
    // SAFETY: the attributes are laid out as the kernel wants them, say their own size, and live
    // through the call; the other arguments are numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            0,
            -1,
            -1,
            FLAG_CLOSE_ON_EXEC,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { File::from_raw_fd(fd) }),
        _ => Err(format!(
            "perf_event_open is refused: {}",
            io::Error::last_os_error()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_or_says_why_not() {
        let counter = SyscallCounter::open();
        if let Some(why) = counter.refusal() {
            assert!(!why.is_empty());
            assert_eq!(counter.read(), None);
            return;
        }
        let before = counter.read().expect("it was opened");
        let calls = || {
            for _ in 0..100 {
                assert!(fs::metadata("/").is_ok());
            }
        };
        std::thread::spawn(calls).join().expect("it does not panic");
        assert!(counter.read().expect("it was opened") >= before + 100);
    }
}
