//! Records from a file or standard input, read by a thread of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use alluvium::format::RECORD_LEN_MAX;
use tokio::sync::mpsc;

use crate::args::Framing;
use crate::failure::Failure;

/// Records that were read together.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) records: Vec<Vec<u8>>,
    /// Bytes of input that they took, framing included.
    pub(crate) bytes: u64,
}

/// Records on their way from the reading thread.
#[derive(Debug)]
pub(crate) struct Input {
    chunks: mpsc::Receiver<Result<Chunk, Failure>>,
    /// Length of the input in bytes, when it is known.
    pub(crate) len: Option<u64>,
}

const CHUNK_RECORDS: usize = 1024;
const CHUNK_BYTES: u64 = 1 << 20;
const CHUNKS_AHEAD: usize = 4;

impl Input {
    /// Starts to read `file`, or standard input without one.
    pub(crate) fn start(file: Option<&Path>, framing: Framing) -> Result<Self, Failure> {
        let named = file.filter(|path| *path != Path::new("-"));
        let (reader, len, name): (Box<dyn Read + Send>, _, _) = match named {
            Some(path) => {
                let file = File::open(path).map_err(Failure::io("open", path))?;
                let metadata = file.metadata().map_err(Failure::io("look at", path))?;
                if metadata.is_dir() {
                    let text = format!("{}: is a directory; name a file", path.display());
                    return Err(Failure::Other(text));
                }
                let len = metadata.is_file().then_some(metadata.len());
                (Box::new(file), len, path.display().to_string())
            }
            None => (Box::new(io::stdin()), None, "standard input".to_owned()),
        };
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let read = move || {
            let mut source = Source {
                reader: BufReader::new(reader),
                framing,
                name,
                number: 0,
            };
            loop {
                match source.chunk() {
                    Ok(chunk) if chunk.records.is_empty() => return,
                    Ok(chunk) => {
                        if sender.blocking_send(Ok(chunk)).is_err() {
                            return;
                        }
                    }
                    Err(failure) => {
                        // Nobody listens any more when that fails.
                        sender.blocking_send(Err(failure)).ok();
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(read);
        thread.map_err(|e| Failure::Other(format!("start a thread to read the input: {e}")))?;
        Ok(Self { chunks, len })
    }

    /// The next records; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Chunk, Failure>> {
        self.chunks.recv().await
    }
}

struct Source {
    reader: BufReader<Box<dyn Read + Send>>,
    framing: Framing,
    name: String,
    /// Records so far.
    number: u64,
}

impl Source {
    /// Reads until a chunk is full, or until the next read might have to wait.
    fn chunk(&mut self) -> Result<Chunk, Failure> {
        let mut chunk = Chunk::default();
        while chunk.records.len() < CHUNK_RECORDS && chunk.bytes < CHUNK_BYTES {
            let Some((record, bytes)) = self.record()? else {
                break;
            };
            self.number += 1;
            chunk.records.push(record);
            chunk.bytes += bytes;
            if self.reader.buffer().is_empty() {
                break;
            }
        }
        Ok(chunk)
    }

    /// One record and the bytes that it took; `None` at the end.
    fn record(&mut self) -> Result<Option<(Vec<u8>, u64)>, Failure> {
        let record = match self.framing {
            Framing::Lines => self.line(),
            Framing::LengthPrefixed => self.length_prefixed(),
        };
        record.map_err(|e| {
            Failure::Other(format!(
                "{}: record {} of the input: {e}",
                self.name, self.number
            ))
        })
    }

    fn line(&mut self) -> io::Result<Option<(Vec<u8>, u64)>> {
        let mut line = Vec::new();
        let limit = RECORD_LEN_MAX as u64 + 1;
        let bytes = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if bytes == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > RECORD_LEN_MAX {
            return Err(too_long(line.len() as u64));
        }
        Ok(Some((line, bytes as u64)))
    }

    fn length_prefixed(&mut self) -> io::Result<Option<(Vec<u8>, u64)>> {
        if self.reader.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut prefix = [0; 4];
        self.reader.read_exact(&mut prefix).map_err(cut_short)?;
        let len = u64::from(u32::from_le_bytes(prefix));
        if len > RECORD_LEN_MAX as u64 {
            return Err(too_long(len));
        }
        let mut record = Vec::new();
        (&mut self.reader).take(len).read_to_end(&mut record)?;
        if (record.len() as u64) < len {
            return Err(cut_short(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Some((record, len + 4)))
    }
}

fn too_long(len: u64) -> io::Error {
    let why = format!("{len} bytes or more, a record has at most {RECORD_LEN_MAX}");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn cut_short(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return io::Error::new(error.kind(), "the input ends inside of it");
    }
    error
}
