//! Appending, reading, following and looking: what goes in comes out.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::{Scene, text};

#[test]
fn lines_from_a_file_come_back_on_every_backend() {
    for backend in ["auto", "tokio"] {
        let scene = Scene::new();
        let lines = text(0..500);
        let file = scene.file("lines", lines.as_bytes());
        let args = ["append", "--partition", "7", "--backend", backend];
        let ran = scene.run_with(&args, &file).expect(0);
        ran.says("appended 500 records")
            .says("offsets [0, 500)")
            .says("log end 500");
        let ran = scene
            .run(&["read", "--partition", "7", "--backend", backend])
            .expect(0);
        assert_eq!(ran.text(), lines);
        scene
            .run(&["verify", "--backend", backend])
            .expect(0)
            .says("500 records: clean");
    }
}

#[test]
fn lines_from_standard_input_come_back_empty_and_unfinished_ones_too() {
    let scene = Scene::new();
    for ack in ["accepted", "written", "durable"] {
        let args = ["append", "--ack", ack, "--batch", "2", "--inflight", "1"];
        let ran = scene
            .run_with_input(&args, b"first\n\n  third\r\nlast")
            .expect(0);
        ran.says(&format!("acknowledged as {ack}"));
    }
    let once = "first\n\n  third\r\nlast\n";
    assert_eq!(scene.run(&["read"]).expect(0).text(), once.repeat(3));
    assert_eq!(
        scene.run(&["read", "--from", "3", "--count", "2"]).text(),
        "last\nfirst\n"
    );
    assert_eq!(scene.run(&["read", "--from", "12"]).expect(0).text(), "");
    scene
        .run(&["read", "--from", "13"])
        .expect(2)
        .complains("offset 13 is outside of 0 to 12");
}

#[test]
fn length_prefixed_records_come_back_whatever_their_bytes() {
    let scene = Scene::new();
    let values: [&[u8]; 4] = [b"with\nnewline", b"", &[0, 255, 10, 13], &[7; 5000]];
    let mut input = Vec::new();
    for value in values {
        input.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
        input.extend_from_slice(value);
    }
    scene
        .run_with_input(&["append", "--length-prefixed"], &input)
        .expect(0);
    assert_eq!(
        scene
            .run(&["read", "--format", "length-prefixed"])
            .expect(0)
            .out,
        input
    );
    let json = scene
        .run(&["read", "--format", "json", "--from", "2", "--count", "1"])
        .expect(0);
    let record: Value = serde_json::from_slice(&json.out).unwrap();
    assert_eq!(
        (&record["offset"], &record["value"]["hex"]),
        (&2.into(), &"00ff0a0d".into())
    );

    let cut = &input[..input.len() - 1];
    let ran = scene
        .run_with_input(&["append", "--length-prefixed"], cut)
        .expect(2);
    ran.complains("record 3 of the input: the input ends inside of it");
}

#[test]
fn resume_appends_what_is_missing() {
    let scene = Scene::new();
    let lines = text(0..1000);
    let part = scene.file("part", text(0..300).as_bytes());
    let all = scene.file("all", lines.as_bytes());
    scene.run_with(&["append", "--resume"], &part).expect(0);
    let ran = scene.run_with(&["append", "--resume"], &all).expect(0);
    ran.says("skipped 300 records")
        .says("appended 700 records")
        .says("[300, 1000)");
    scene
        .run_with(&["append", "--resume"], &all)
        .expect(0)
        .says("appended 0 records");
    assert_eq!(scene.run(&["read"]).text(), lines);
}

#[test]
fn the_acknowledged_end_is_written_to_a_file() {
    let scene = Scene::new();
    let acked = scene.path("acked");
    let args = [
        "append",
        "--batch",
        "7",
        "--acked-to",
        acked.to_str().unwrap(),
    ];
    scene
        .run_with_input(&args, text(0..100).as_bytes())
        .expect(0);
    assert_eq!(fs::read_to_string(acked).unwrap(), format!("{:020}\n", 100));
}

#[test]
fn reading_from_a_time_starts_at_the_first_record_of_it() {
    let scene = Scene::new();
    let time_of = |offset: &str| {
        let args = ["read", "--format", "json", "--count", "1", "--from", offset];
        let json = scene.run(&args).expect(0);
        let record: Value = serde_json::from_slice(&json.out).unwrap();
        record["timestamp"].as_i64().unwrap()
    };
    scene.run_with_input(&["append"], b"old\n").expect(0);
    let old = u128::try_from(time_of("0")).unwrap();
    // The next record is of another millisecond.
    while SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis()
        <= old
    {
        std::thread::yield_now();
    }
    scene.run_with_input(&["append"], b"new\n").expect(0);
    let time = time_of("1").to_string();
    assert_eq!(
        scene
            .run(&["read", "--from-timestamp", &time])
            .expect(0)
            .text(),
        "new\n"
    );
    assert_eq!(
        scene.run(&["read", "--from-timestamp", "-1"]).text(),
        "old\nnew\n"
    );
    assert_eq!(
        scene
            .run(&["read", "--from-timestamp", "99999999999999"])
            .expect(0)
            .text(),
        ""
    );
}

#[test]
fn tail_prints_the_last_records() {
    let scene = Scene::new();
    scene
        .run_with_input(&["append"], text(0..50).as_bytes())
        .expect(0);
    assert_eq!(scene.run(&["tail"]).expect(0).text(), text(40..50));
    assert_eq!(
        scene.run(&["tail", "-n", "3"]).expect(0).text(),
        text(47..50)
    );
    assert_eq!(
        scene.run(&["tail", "-n", "99"]).expect(0).text(),
        text(0..50)
    );
    assert_eq!(scene.run(&["tail", "-n", "0"]).expect(0).text(), "");
}

#[test]
fn tail_follows_until_it_is_interrupted() {
    let scene = Scene::new();
    scene.run_with_input(&["append"], b"before\n").expect(0);
    let mut child = scene.command(&["tail", "--follow"]).spawn().unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(printed.next().unwrap().unwrap(), "before");
    // The follower has the store open for a moment now and then.
    let until = Instant::now() + Duration::from_secs(20);
    while scene.run_with_input(&["append"], b"after\n").code != Some(0) {
        assert!(Instant::now() < until, "the follower keeps the store");
    }
    assert_eq!(printed.next().unwrap().unwrap(), "after");
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    assert!(printed.next().is_none());
    assert!(child.wait().unwrap().success());
}

#[test]
fn inspect_tells_what_is_there() {
    let scene = Scene::with_store();
    let partition = scene.inspect();
    assert_eq!(
        (&partition["log_start"], &partition["log_end"]),
        (&0.into(), &2000.into())
    );
    assert_eq!(partition["tail"], "clean");
    assert_eq!(partition["damage"], Value::Array(Vec::new()));
    let segments = partition["segments"].as_array().unwrap();
    assert!(segments.len() > 2);
    let (mut next, mut sealed) = (0, false);
    for segment in segments {
        assert_eq!(segment["base_offset"], next);
        let len = fs::metadata(segment["path"].as_str().unwrap())
            .unwrap()
            .len();
        assert_eq!(segment["capacity_bytes"], len);
        for batch in segment["batches"].as_array().unwrap() {
            assert_eq!(
                (&batch["base_offset"], &batch["valid"]),
                (&next.into(), &true.into())
            );
            if batch["kind"] == "control" {
                assert_eq!(batch["last_offset"], Value::Null);
                sealed = batch["reason"] == "seal";
                continue;
            }
            sealed = false;
            assert_eq!(batch["record_count"], 10);
            next += 10;
            assert_eq!(batch["last_offset"], next - 1);
        }
        assert_eq!(segment["end_offset"], next);
    }
    assert_eq!(next, 2000);
    assert!(sealed, "the log ends with a seal");

    let human = scene.run(&["inspect", "--all"]).expect(0);
    human
        .says("offsets [0, 2000)")
        .says("control (seal)")
        .says("00000000000000000001.seg");
    scene
        .run(&["inspect", "--segments-only"])
        .expect(0)
        .says("valid");
}

#[test]
fn probe_tells_backends_and_the_file_system_of_the_nearest_directory() {
    let scene = Scene::new();
    let ran = scene.run(&["probe"]).expect(0);
    ran.says("tokio")
        .says("compio")
        .says("uring")
        .says("auto takes")
        .complains("does not exist; looking at");
    assert!(!scene.store().exists(), "probing creates nothing");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let scene = Scene::new();
    scene
        .run_with_input(&["append"], text(0..50_000).as_bytes())
        .expect(0);
    let mut child = scene.command(&["read"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_second_process_is_turned_away_while_one_appends() {
    let scene = Scene::new();
    let acked = scene.path("acked");
    let args = [
        "append",
        "--batch",
        "1",
        "--acked-to",
        acked.to_str().unwrap(),
    ];
    let mut child = scene.command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while fs::read(&acked).map_or(0, |bytes| bytes.len()) == 0 {
        assert!(Instant::now() < until, "nothing was acknowledged");
        std::thread::sleep(Duration::from_millis(5));
    }
    for command in ["verify", "read", "inspect", "repair", "append"] {
        scene
            .run(&[command])
            .expect(2)
            .complains("the store is open in another process");
    }
    input.write_all(b"two\n").unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    assert_eq!(scene.run(&["read"]).expect(0).text(), "one\ntwo\n");
}
