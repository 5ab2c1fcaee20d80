//! The blocking pool under shuttle: its lock and condition are the scheduler's.

use shuttle::thread;
use std::sync::{Arc, Mutex};

use super::check;
use super::machine::block_on;
use crate::{BlockingPool, PoolError};

#[test]
fn every_job_of_a_blocking_pool_is_answered_and_its_threads_end() {
    check(|| {
        let workers = Arc::new(Mutex::new(vec![]));
        let started = Arc::clone(&workers);
        let spawn = move |_, body: Box<dyn FnOnce() + Send>| {
            started.lock().unwrap().push(thread::spawn(body));
            Ok(())
        };
        let pool = BlockingPool::start("model", 2, 1, &spawn).unwrap();
        let callers = [0, 1].map(|n| {
            let pool = pool.clone();
            thread::spawn(move || {
                block_on(async {
                    assert_eq!(pool.run(move || n).await, Ok(n));
                    match pool.try_run(move || n + 10).await {
                        Ok(m) => assert_eq!(m, n + 10),
                        Err(e) => assert_eq!(e, PoolError::Full),
                    }
                });
            })
        });
        assert_eq!(block_on(pool.run(|| 7)), Ok(7));
        // The last clone may go while the others still ask.
        drop(pool);
        for caller in callers {
            caller.join().unwrap();
        }
        let workers = std::mem::take(&mut *workers.lock().unwrap());
        for worker in workers {
            worker.join().unwrap();
        }
    });
}
