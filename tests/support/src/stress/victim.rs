//! The writing process, as the one that kills it sees it.

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::{Event, Writer};

/// A running writer.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Victim {
    /// Starts `command` as a writer.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start(mut command: Command, writer: &Writer) -> io::Result<Self> {
        let (name, value) = writer.to_environment();
        command.env(name, value);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let pipe = child.stdout.take();
        let pipe = pipe.ok_or_else(|| io::Error::other("the child has no pipe"))?;
        let lines = BufReader::new(pipe);
        Ok(Self { child, lines })
    }

    /// The test binary that runs now, asked for its test `name`, which is the writer.
    ///
    /// # Errors
    /// Those of finding out which binary that is.
    pub fn this_test(name: &str) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        Ok(command)
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says comes through this.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.lines.get_ref().as_fd()
    }

    /// The next event; `None` when the process has let go of the pipe.
    ///
    /// # Errors
    /// Those of reading the pipe.
    pub fn hear(&mut self) -> io::Result<Option<Event>> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            if let Some(event) = Event::parse(line.trim_end_matches('\n')) {
                return Ok(Some(event));
            }
        }
    }

    /// Kills it with SIGKILL and does not wait: what it had in flight may still land.
    ///
    /// # Errors
    /// Those of kill(2); a process that has ended already is none.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// What it had said before it died, once it has died.
    ///
    /// # Errors
    /// Those of reading the pipe and of wait(2).
    pub fn last_words(mut self) -> io::Result<Vec<Event>> {
        let mut words = Vec::new();
        while let Some(event) = self.hear()? {
            words.push(event);
        }
        self.child.wait()?;
        Ok(words)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill and only a number to give back.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
