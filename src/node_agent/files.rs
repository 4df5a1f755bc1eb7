//! Files that are there whole or not at all, and that nobody reads who is not meant to.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use super::config::Readers;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// These.
    Of(Readers),
    /// Everybody.
    All,
}

/// Writes a file, in place of what is there. It is never there in part, nor readable by more than it says.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let staged = staged(path);
    // Of a process that was killed.
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    file.write_all(content)?;
    let mode = match access {
        Access::Of(Readers::Owner) => 0o600,
        Access::Of(Readers::Group(group)) => {
            fchown(&file, None, Some(group))?;
            0o640
        }
        Access::All => 0o644,
    };
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    // The name, too: after a loss of power there is the old file or the new one.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Where a file is prepared: beside its place, since a rename is whole within one file system alone.
fn staged(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// A file's text. None: there is none.
///
/// # Errors
/// What the system says.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("giantnetes-files-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_has_its_readers_from_the_beginning_and_is_replaced_whole() {
        let folder = folder("modes");
        let path = folder.join("a.key");
        write(&path, b"one", Access::Of(Readers::Owner)).unwrap();
        assert_eq!((mode(&path), read(&path).unwrap().as_deref()), (0o600, Some("one")));
        // Our own group, so that the test needs no rights.
        let group = std::os::unix::fs::MetadataExt::gid(&fs::metadata(&path).unwrap());
        // What another left half-written is in nobody's way.
        fs::write(folder.join(".a.key.new"), "torn").unwrap();
        let before = File::open(&path).unwrap();
        write(&path, b"two", Access::Of(Readers::Group(group))).unwrap();
        assert_eq!((mode(&path), read(&path).unwrap().as_deref()), (0o640, Some("two")));
        // Who has it open reads the old one to its end.
        assert_eq!(io::read_to_string(before).unwrap(), "one");
        write(&path, b"three", Access::All).unwrap();
        assert_eq!(mode(&path), 0o644);
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["a.key"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_not_there_is_no_error_and_what_cannot_be_written_is() {
        let folder = folder("none");
        assert_eq!(read(&folder.join("a")).unwrap(), None);
        assert!(read(&folder).is_err());
        assert!(write(&folder.join("b/c"), b"x", Access::All).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
