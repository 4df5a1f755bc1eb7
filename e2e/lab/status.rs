//! `lab status`: what of the lab runs.

use anyhow::Result;

use crate::Lab;
use crate::paths::Paths;
use crate::process::records;

/// Prints a line per server and the nodes. Says whether the lab is healthy.
///
/// # Errors
/// If the machine does not tell where the lab's files are.
pub fn status() -> Result<bool> {
    let paths = Paths::of_machine()?;
    let Some(lab) = Lab::found() else {
        println!("no lab is set up; `lab up` sets one up");
        return Ok(false);
    };
    let mut healthy = true;
    println!("{:<26} {:>8}  STATE", "SERVER", "PID");
    for record in records(&paths) {
        let alive = record.alive();
        healthy &= alive;
        println!("{:<26} {:>8}  {}", record.name, record.pid, if alive { "runs" } else { "ended" });
    }
    println!();
    match lab.kubectl(&["get", "nodes", "--output=wide"]) {
        Ok(nodes) => print!("{nodes}"),
        Err(error) => {
            healthy = false;
            println!("the API server does not answer: {error:#}");
        }
    }
    if !healthy {
        println!("\n`lab up` starts what has ended; logs are in {}", paths.logs().display());
    }
    Ok(healthy)
}
