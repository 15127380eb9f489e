//! The append-only log of one collection: a JSON record per line, fsynced
//! before the operation is acknowledged.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

use super::state::Record;
use crate::error::{Error, Result};

const FILE: &str = "log.jsonl";

#[derive(Debug)]
pub struct Log {
    file: File,
    /// Where the last whole record ends.
    end: u64,
}

impl Log {
    /// Makes the folder and its log with a first record. Durable on return,
    /// apart from the folder's own name in its parent.
    pub fn create(dir: &Path, first: &Record) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let file = File::create_new(dir.join(FILE))?;
        let mut log = Self { file, end: 0 };
        log.append(first)?;
        File::open(dir)?.sync_all()?;
        Ok(log)
    }

    /// Reads all records. A last line without its newline was never
    /// acknowledged: it is cut off.
    pub fn open(dir: &Path) -> Result<(Self, Vec<Record>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(FILE))?;
        let mut reader = BufReader::new(&file);
        let mut records = Vec::new();
        let mut end = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            records.push(serde_json::from_slice(&line)?);
            end += u64::try_from(read).unwrap_or(0);
        }
        if records.is_empty() {
            return Err(Error::Internal(format!(
                "the log in {} holds no record",
                dir.display()
            )));
        }
        file.set_len(end)?;
        Ok((Self { file, end }, records))
    }

    /// Appends one record; durable on return. After an error the log holds
    /// what it held before.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let written = self.write(&line);
        match written {
            Ok(()) => self.end += u64::try_from(line.len()).unwrap_or(0),
            Err(_) => self.file.set_len(self.end)?,
        }
        Ok(written?)
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(line)?;
        self.file.sync_data()
    }
}
