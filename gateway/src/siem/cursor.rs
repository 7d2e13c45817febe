//! How far a sink has come, on disk: `sink-<name>.cursor` beside the segments.
//!
//! It follows confirmed records only. An old one costs repeats and no record; one that cannot be read counts
//! as none, and the sink then begins with the oldest record that is there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::trail::Place;

/// The file of one sink.
#[derive(Debug, Clone)]
pub(super) struct CursorFile {
    dir: PathBuf,
    name: String,
}

#[derive(Deserialize, Serialize)]
struct Written {
    seq: u64,
    stream: String,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Place(Place),
    /// A file, and no place in it.
    Damaged,
}

impl CursorFile {
    pub(super) fn new(dir: &Path, sink: &str) -> Self {
        Self { dir: dir.to_owned(), name: format!("sink-{sink}.cursor") }
    }

    /// Blocks on the disk.
    ///
    /// # Errors
    /// What the system says; that there is no such file is none.
    pub(super) fn load(&self) -> io::Result<Found> {
        let bytes = match std::fs::read(self.dir.join(&self.name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        let written: Option<Written> = serde_json::from_slice(&bytes).ok();
        let place = written
            .and_then(|Written { seq, stream }| Some(Place { stream: stream.parse().ok()?, seq }));
        Ok(place.map_or(Found::Damaged, Found::Place))
    }

    /// Replaces the file whole, durably. Blocks on the disk.
    ///
    /// # Errors
    /// What the system says; then the old one stands.
    pub(super) fn save(&self, place: &Place) -> io::Result<()> {
        let written = Written { seq: place.seq, stream: place.stream.to_string() };
        let text = serde_json::to_vec(&written)?;
        let new = self.dir.join(format!("{}.new", self.name));
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, self.dir.join(&self.name))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_saved_and_damage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = CursorFile::new(dir.path(), "siem");
        let stream = "tollgate/gateway-1/01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let place = Place { stream, seq: 7 };

        assert_eq!(file.load().unwrap(), Found::Nothing);
        file.save(&place).unwrap();
        assert_eq!(file.load().unwrap(), Found::Place(place));
        std::fs::write(dir.path().join("sink-siem.cursor"), "{\"seq\":7").unwrap();
        assert_eq!(file.load().unwrap(), Found::Damaged);
    }
}
