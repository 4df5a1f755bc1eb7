//! The lab's memory: a lock that lets one command at a time act, the journal of steps, and the traces left outside the
//! state folder that `lab down` has to remove.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::paths::{Paths, make_folder};
use crate::wait::wait_for;

/// The lock on the state folder; held as long as the value, or a copy that a child inherited, lives.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Makes the state folder if need be and locks it, waiting for another lab command to end.
    ///
    /// # Errors
    /// If another command holds the lock for longer than `limit`.
    pub fn take(paths: &Paths, limit: Duration) -> Result<Self> {
        wait_for(limit, "the end of another lab command", || {
            make_folder(&paths.state)?;
            let folder = File::open(&paths.state).context("cannot open the state folder")?;
            flock(&folder, FlockOperation::NonBlockingLockExclusive).context("the state folder is locked")?;
            // `lab down` removes the folder while it holds the lock: the folder locked may be gone by now.
            let (locked, there) = (folder.metadata()?, std::fs::metadata(&paths.state)?);
            if locked.ino() != there.ino() {
                bail!("the state folder was replaced");
            }
            Ok(Self(folder))
        })
    }

    /// A handle for a child that must finish before the lock is free.
    ///
    /// # Errors
    /// If the process is out of file descriptors.
    pub fn share(&self) -> Result<File> {
        self.0.try_clone().context("cannot duplicate the lock")
    }
}

/// Runs steps, tells about each, and keeps a list of them in `state/steps`.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    done: usize,
    crash_after: Option<usize>,
}

impl Journal {
    /// A journal that starts at step 1. `GIANTNETES_LAB_CRASH_AFTER=N` makes it kill this process after step N.
    ///
    /// # Errors
    /// If that variable is not a number.
    pub fn open(paths: &Paths) -> Result<Self> {
        let crash_after = match std::env::var("GIANTNETES_LAB_CRASH_AFTER") {
            Ok(n) => Some(n.parse().with_context(|| format!("GIANTNETES_LAB_CRASH_AFTER={n} is not a number"))?),
            Err(_) => None,
        };
        Ok(Self { file: paths.state.join("steps"), done: 0, crash_after })
    }

    /// Runs one step and records that it is done.
    ///
    /// # Errors
    /// The step's own error, with the step's name before it.
    pub fn step<T>(&mut self, name: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let value = action().with_context(|| format!("step \"{name}\" failed"))?;
        self.done += 1;
        append(&self.file, name)?;
        eprintln!("lab: {name} ({:.1} s)", started.elapsed().as_secs_f32());
        if self.crash_after == Some(self.done) {
            eprintln!("lab: crashing after step {} as told", self.done);
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .context("cannot kill this process")?;
        }
        Ok(value)
    }

    /// How many steps were done.
    pub fn done(&self) -> usize {
        self.done
    }
}

/// Something outside the state folder that was not there before the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// A folder that was made as a mount point.
    Folder(PathBuf),
    /// A folder that was turned into a mount of itself (by `ip netns add`).
    Mount(PathBuf),
}

/// Makes a folder outside the state folder, each missing parent too, and remembers what it made.
///
/// # Errors
/// If the file system refuses.
pub fn make_foreign_folder(paths: &Paths, folder: &Path) -> Result<()> {
    let mut missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    missing.reverse();
    for path in missing {
        // Remembered first: a crash in between leaves a trace without a folder, which does no harm.
        remember(paths, &Trace::Folder(path.into()))?;
        std::fs::create_dir(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
    }
    Ok(())
}

/// Adds a trace to the list.
///
/// # Errors
/// If the file system refuses.
pub fn remember(paths: &Paths, trace: &Trace) -> Result<()> {
    let line = match trace {
        Trace::Folder(path) => format!("folder {}", path.display()),
        Trace::Mount(path) => format!("mount {}", path.display()),
    };
    append(&paths.state.join("traces"), &line)
}

/// The traces that were left, the last one first. A line that a crash cut short is passed over.
pub fn traces(paths: &Paths) -> Vec<Trace> {
    let text = std::fs::read_to_string(paths.state.join("traces")).unwrap_or_default();
    text.lines()
        .rev()
        .filter_map(|line| match line.split_once(' ')? {
            ("folder", path) => Some(Trace::Folder(path.into())),
            ("mount", path) => Some(Trace::Mount(path.into())),
            _ => None,
        })
        .collect()
}

fn append(file: &Path, line: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("cannot open {}", file.display()))?;
    file.write_all(format!("{line}\n").as_bytes()).context("cannot append to the journal")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str) -> Paths {
        let folder = std::env::temp_dir().join(format!("giantnetes-lab-test-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("state")).unwrap();
        Paths { state: folder.join("state"), cache: folder.join("cache") }
    }

    #[test]
    fn only_folders_that_were_missing_are_remembered_and_the_deepest_comes_first() {
        let paths = paths("folders");
        let outside = paths.state.parent().unwrap().join("outside");
        std::fs::create_dir(&outside).unwrap();
        make_foreign_folder(&paths, &outside.join("a/b")).unwrap();
        make_foreign_folder(&paths, &outside.join("a/b")).unwrap();
        assert_eq!(traces(&paths), [Trace::Folder(outside.join("a/b")), Trace::Folder(outside.join("a"))]);
        std::fs::remove_dir_all(paths.state.parent().unwrap()).unwrap();
    }

    #[test]
    fn the_lock_keeps_a_second_command_out_until_every_copy_is_closed() {
        let paths = paths("lock");
        let lock = Lock::take(&paths, Duration::ZERO).unwrap();
        let copy = lock.share().unwrap();
        drop(lock);
        assert!(Lock::take(&paths, Duration::from_millis(60)).is_err());
        drop(copy);
        assert!(Lock::take(&paths, Duration::ZERO).is_ok());
        std::fs::remove_dir_all(paths.state.parent().unwrap()).unwrap();
    }
}
