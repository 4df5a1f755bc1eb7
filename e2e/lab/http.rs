//! The little of HTTP that looking after servers takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// The status of an answer to GET, all of it within some seconds.
///
/// # Errors
/// If nothing answers, or not in HTTP.
pub fn status(server: SocketAddr, path: &str) -> Result<u16> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.with_context(|| format!("{server} does not speak HTTP: {answer:?}"))
}
