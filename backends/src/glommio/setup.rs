//! What glommio needs of the machine, asked of the kernel before glommio asks.
//!
//! glommio panics when its rings cannot be made, and ends the process when an opcode is missing.
//! So both are tried here first, and the answer is an error.

use std::io;

use glommio::GlommioError;
use io_uring::{IoUring, Probe, opcode};

use rustix::process::{Resource, getrlimit};

/// glommio refuses to start below this limit of locked memory.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// What glommio checks, and calls `exit` over.
const OPCODES: [(&str, u8); 23] = [
    ("NOP", opcode::Nop::CODE),
    ("READV", opcode::Readv::CODE),
    ("WRITEV", opcode::Writev::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("POLL_REMOVE", opcode::PollRemove::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("TIMEOUT_REMOVE", opcode::TimeoutRemove::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("LINK_TIMEOUT", opcode::LinkTimeout::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("STATX", opcode::Statx::CODE),
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
];

/// Tries what glommio is about to do. The error is the kernel's, with its code, where there is
/// one.
pub(super) fn check(ring_entries: u32) -> io::Result<()> {
    let main = IoUring::new(ring_entries)?;
    let latency = IoUring::new(ring_entries)?;
    let poll: IoUring = IoUring::builder().setup_iopoll().build(ring_entries)?;
    let mut probe = Probe::new();
    main.submitter().register_probe(&mut probe)?;
    drop((main, latency, poll));
    check_opcodes(|code| probe.is_supported(code))?;
    check_memlock(getrlimit(Resource::Memlock).current)
}

fn check_opcodes(is_supported: impl Fn(u8) -> bool) -> io::Result<()> {
    match OPCODES.iter().find(|(_, code)| !is_supported(*code)) {
        None => Ok(()),
        Some((name, _)) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("io_uring here lacks IORING_OP_{name}, which glommio needs"),
        )),
    }
}

/// `limit` in bytes, `None` for unlimited.
fn check_memlock(limit: Option<u64>) -> io::Result<()> {
    match limit {
        Some(bytes) if bytes < MEMLOCK_BYTES_MIN => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "RLIMIT_MEMLOCK is {bytes} bytes, glommio needs {MEMLOCK_BYTES_MIN} \
                 (ulimit -l)"
            ),
        )),
        _ => Ok(()),
    }
}

/// With the operating system's code where there is one.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(super) fn to_io(error: GlommioError<()>) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

/// A panic while glommio was being set up.
pub(super) fn setup_panicked() -> io::Error {
    io::Error::other("glommio panicked while it was set up (is there a thread to be had?)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn what_glommio_would_exit_over_is_an_error_that_names_it() {
        check_opcodes(|_| true).expect("all there");
        let e = check_opcodes(|code| code != opcode::Fallocate::CODE).expect_err("one missing");
        assert_eq!(e.kind(), io::ErrorKind::Unsupported);
        assert!(e.to_string().contains("IORING_OP_FALLOCATE"), "{e}");
    }

    #[test]
    fn a_low_limit_of_locked_memory_is_named() {
        check_memlock(None).expect("unlimited");
        check_memlock(Some(MEMLOCK_BYTES_MIN)).expect("enough");
        let e = check_memlock(Some(65536)).expect_err("too little");
        assert!(e.to_string().contains("RLIMIT_MEMLOCK is 65536"), "{e}");
    }

    #[test]
    fn the_kernels_code_survives_glommios_wrapping() {
        let source = io::Error::from(Errno::NOSPC);
        let wrapped = GlommioError::EnhancedIoError {
            source,
            op: "Writing",
            path: None,
            fd: Some(3),
        };
        assert_eq!(
            to_io(wrapped).raw_os_error(),
            Some(Errno::NOSPC.raw_os_error())
        );
        let other = to_io(GlommioError::TimedOut(std::time::Duration::ZERO));
        assert_eq!(other.raw_os_error(), None);
    }
}
