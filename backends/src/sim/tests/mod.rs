//! Tests of the simulation itself: that it shows what it claims, and nothing else.

mod crash;
mod fault;
mod schedule;

use std::path::Path;
use std::rc::Rc;

use alluvium_core::io::{AlignedBuf, IoBackend, IoFile, OpenOptions};
use bytes::Bytes;

use super::{Sim, SimBackend, SimFile};

/// A backend in a new process.
fn process(sim: &Sim) -> Rc<SimBackend> {
    sim.backend(sim.new_process().process())
}

async fn create(backend: &SimBackend, path: &str) -> SimFile {
    backend
        .open(Path::new(path), OpenOptions::CREATE_NEW)
        .await
        .expect("the file can be created")
}

async fn open(backend: &SimBackend, path: &str) -> SimFile {
    backend
        .open(Path::new(path), OpenOptions::READ_WRITE)
        .await
        .expect("the file can be opened")
}

async fn write(file: &SimFile, offset: u64, byte: u8, len: usize) {
    let (result, _) = file.write_at(pattern(byte, len), offset).await;
    assert_eq!(result.expect("the write succeeds"), len);
}

async fn write_durable(file: &SimFile, offset: u64, byte: u8, len: usize) {
    let (result, _) = file.write_durable(pattern(byte, len), offset).await;
    assert_eq!(result.expect("the write succeeds"), len);
}

async fn read(file: &SimFile, offset: u64, len: usize) -> Vec<u8> {
    let (result, buf) = file
        .read_at(AlignedBuf::with_capacity(len), offset, len)
        .await;
    assert_eq!(result.expect("the read succeeds"), buf.len());
    buf.to_vec()
}

/// Aligned memory full of one byte.
fn pattern(byte: u8, len: usize) -> Bytes {
    let mut buf = AlignedBuf::with_capacity(len);
    buf.resize(len);
    buf.fill(byte);
    buf.freeze()
}

/// The bytes that occur, without repetitions in a row per sector.
fn sectors(content: &[u8]) -> Vec<u8> {
    content
        .chunks(512)
        .map(|sector| {
            assert!(
                sector.iter().all(|b| *b == sector[0]),
                "a sector is never torn inside"
            );
            sector[0]
        })
        .collect()
}

/// How often a byte occurs.
fn count(content: &[u8], byte: u8) -> usize {
    content.iter().map(|b| usize::from(*b == byte)).sum()
}
