//! The plain way: `tokio::fs::File`, `write_all` and `sync_data` per append, behind a mutex per
//! file.

use std::sync::Arc;
use std::time::Instant;

use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

use crate::AnyError;
use crate::measure::{Meter, Outcome, Run, histogram};
use crate::store::{join, record};

pub(crate) async fn run(workload: &str, run: &Run) -> Result<Option<Outcome>, AnyError> {
    // Producers, files, bytes per append, sync per append.
    let (producers, files, len, sync) = match workload {
        "W1" => (1, 1, 1024, true),
        "W2" => (64, 1, 1024, true),
        "W3" => (256, 16, 1024, true),
        "W4" => (8, 1, 64 << 10, true),
        "W5" => (8, 1, 64 << 10, false),
        _ => return Ok(None),
    };
    let mut logs = Vec::new();
    for n in 0..files {
        let file = File::create(run.dir.join(format!("log-{n}"))).await?;
        logs.push(Arc::new(Mutex::new(file)));
    }
    let data = vec![0x5A_u8; len];
    let until = run.until();
    let meter = Meter::start();
    let mut tasks = Vec::new();
    for n in 0..producers {
        let (log, data) = (Arc::clone(&logs[n % files]), data.clone());
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram();
            while Instant::now() < until {
                let started = Instant::now();
                let mut file = log.lock().await;
                file.write_all(&data).await?;
                if sync {
                    // `flush` first: the data may still be in the handle's own buffer.
                    file.flush().await?;
                    file.sync_data().await?;
                }
                drop(file);
                record(&mut latency, started);
            }
            Ok::<_, AnyError>(latency)
        }));
    }
    let latency = join(tasks).await?;
    if !sync {
        for log in &logs {
            let mut file = log.lock().await;
            file.flush().await?;
            file.sync_data().await?;
        }
    }
    let operations = latency.len();
    Ok(Some(meter.finish(
        latency,
        operations,
        operations * len as u64,
    )))
}
