//! Moves the databases of an application that used plain Noxu into a group of one, which further
//! nodes can then join. The application must not run meanwhile.
//!
//! `cargo run -p steadfast-examples --bin move_from_noxu -- NOXU_DIR DATA_DIR`
//!
//! It only reads the old directory. It may be run again after an interruption: what was copied is
//! put again with the same values. At the end it compares everything.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use noxu::{Database, DatabaseConfig, Environment, EnvironmentConfig};
use steadfast::{ConsistencyPolicy, RepConfig, ReplicatedEnvironment, WriteBatch};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Rows and bytes of one transaction: enough to share a sync, far below the limits.
const ROWS_PER_BATCH: u64 = 1_000;
const BYTES_PER_BATCH: usize = 1024 * 1024;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else {
        return Err("usage: move_from_noxu NOXU_DIR DATA_DIR".into());
    };
    let old = open_old(Path::new(from))?;
    let config = RepConfig::builder("moved", "n1")
        .data_dir(to)
        .listen("127.0.0.1:0")
        .build()?;
    let env = ReplicatedEnvironment::open(config)?;
    env.wait_ready(Duration::from_secs(30))?;
    let mut names = old.database_names()?;
    names.sort();
    for name in names {
        let database =
            old.open_database(None, &name, &DatabaseConfig::new().with_read_only(true))?;
        if database.sorted_duplicates() {
            return Err(
                format!("{name} has several values for a key, which Steadfast has not").into(),
            );
        }
        let rows = copy(&database, &name, &env)?;
        compare(&database, &name, &env, rows)?;
        println!("{name}: {rows} rows, the same in both");
        database.close()?;
    }
    env.close()?;
    old.close()?;
    Ok(())
}

fn open_old(dir: &Path) -> Result<Environment> {
    if !dir.is_dir() {
        return Err(format!("{} is not a directory", dir.display()).into());
    }
    let config = EnvironmentConfig::new(dir.to_owned()).with_read_only(true);
    Ok(Environment::open(config)?)
}

/// Copies all rows in batches, each a transaction. Returns their number.
fn copy(database: &Database, name: &str, env: &ReplicatedEnvironment) -> Result<u64> {
    let mut cursor = database.open_cursor(None)?;
    let (mut batch, mut bytes, mut rows) = (WriteBatch::new(), 0, 0);
    while let Some((key, value)) = cursor.next()? {
        bytes += key.len() + value.len();
        batch.put(name, key, value);
        rows += 1;
        if rows % ROWS_PER_BATCH == 0 || bytes >= BYTES_PER_BATCH {
            let _token = env.write_batch(&std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    let _token = env.write_batch(&batch)?;
    cursor.close()?;
    Ok(rows)
}

/// Walks over both side by side: both are in the order of their keys.
fn compare(database: &Database, name: &str, env: &ReplicatedEnvironment, rows: u64) -> Result<()> {
    let mut cursor = database.open_cursor(None)?;
    let same = env.read(ConsistencyPolicy::Linearizable, |snapshot| -> Result<u64> {
        let mut same = 0;
        for row in &snapshot.database(name)? {
            let (key, value) = row?;
            if cursor.next()?.is_none_or(|old| old != (key, value)) {
                break;
            }
            same += 1;
        }
        Ok(same)
    })?;
    cursor.close()?;
    if same != rows {
        return Err(format!("{name} differs after {same} of {rows} rows; run this again").into());
    }
    Ok(())
}
