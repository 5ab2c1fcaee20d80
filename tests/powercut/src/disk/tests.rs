//! The disk keeps what was synced, and of the rest one version of each sector.

use super::*;

const OWNER: (u32, u32) = (0, 0);

fn with_file(seed: u64) -> (Disk, u64) {
    let mut disk = Disk::new(seed);
    let file = disk
        .create(ROOT, OsStr::new("f"), Kind::File, 0o600, OWNER)
        .expect("create");
    disk.allocate(file, 4096).expect("allocate");
    disk.sync(file).expect("sync");
    disk.sync(ROOT).expect("sync");
    (disk, file)
}

fn bytes(disk: &Disk, file: u64) -> Vec<u8> {
    disk.read(file, 0, 8192).expect("read").to_vec()
}

#[test]
fn what_was_synced_survives_and_sectors_are_torn_one_by_one() {
    let mut kinds = [0; 3];
    for seed in 0..200 {
        let (mut disk, file) = with_file(seed);
        disk.write(file, 0, &[1; 1024], true).expect("write");
        disk.write(file, 1024, &[2; 1024], false).expect("write");
        disk.sync(file).expect("sync");
        disk.write(file, 1024, &[3; 2048], false).expect("write");
        let left = bytes(&disk.survivor(&[(file, 3072, vec![4; 1024])]), file);
        assert_eq!(left.len(), 4096);
        assert_eq!(left[..1024], [1; 1024], "written through");
        for (from, old, new) in [(1024, 2, 3), (1536, 2, 3), (2048, 0, 3), (3072, 0, 4)] {
            let sector = &left[from..from + 512];
            assert!(sector == [old; 512] || sector == [new; 512], "{from}");
        }
        let survived = left[1024..].chunks(512).filter(|s| s[0] > 2).count();
        kinds[if survived == 0 {
            0
        } else {
            1 + usize::from(survived == 6)
        }] += 1;
    }
    assert!(
        kinds.iter().all(|count| *count > 5),
        "none, some, all: {kinds:?}"
    );
}

#[test]
fn pages_are_not_torn_where_they_stand_or_fall_as_a_whole() {
    let mut kept = 0;
    for seed in 0..100 {
        let (mut disk, file) = with_file(seed);
        disk.tear_at_pages();
        disk.write(file, 512, &[1; 1024], false).expect("write");
        disk.write(file, 0, &[2; 4096], false).expect("write");
        let left = bytes(&disk.survivor(&[]), file);
        assert!([[0; 4096], [2; 4096]].contains(&left[..].try_into().expect("a page")));
        kept += usize::from(left[0] == 2);
    }
    assert!((10..90).contains(&kept), "{kept}");
}

#[test]
fn a_later_write_through_is_not_undone_by_an_earlier_write() {
    for seed in 0..50 {
        let (mut disk, file) = with_file(seed);
        disk.write(file, 0, &[1; 512], false).expect("write");
        disk.write(file, 0, &[2; 512], true).expect("write");
        assert_eq!(bytes(&disk.survivor(&[]), file)[..512], [2; 512]);
    }
}

/// What a file is shortened by does not come back when it grows again.
#[test]
fn what_was_cut_off_is_zero_when_the_file_has_grown_again() {
    for seed in 0..20 {
        for durable in [false, true] {
            let (mut disk, file) = with_file(seed);
            disk.write(file, 0, &[1; 4096], true).expect("write");
            disk.set_len(file, 700).expect("shorten");
            disk.set_len(file, 4096).expect("lengthen");
            disk.write(file, 2048, &[2; 512], durable).expect("write");
            if !durable {
                disk.sync(file).expect("sync");
            }
            let mut expected = [0; 4096];
            expected[..700].fill(1);
            expected[2048..2560].fill(2);
            let left = bytes(&disk.survivor(&[]), file);
            assert_eq!(left[1024..], expected[1024..]);
            assert_eq!(left[..512], expected[..512]);
            // Its sector may be the one from before.
            assert!(durable || left[512..1024] == expected[512..1024]);
        }
    }
}

#[test]
fn names_and_lengths_survive_once_they_are_synced() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..100 {
        let (mut disk, file) = with_file(seed);
        disk.create(ROOT, OsStr::new("d"), Kind::Directory, 0o700, OWNER)
            .expect("create");
        disk.rename(ROOT, OsStr::new("f"), OsStr::new("g"))
            .expect("rename");
        disk.set_len(file, 100).expect("shorten");
        let mut synced = disk.clone();
        let left = disk.survivor(&[]);
        let name = |disk: &Disk, name: &str| disk.lookup(ROOT, OsStr::new(name)).is_ok();
        assert!(name(&left, "f") != name(&left, "g"), "a rename is atomic");
        assert!(
            name(&left, "f") || name(&left, "d"),
            "changes are kept in order"
        );
        assert!([100, 4096].contains(&bytes(&left, file).len()));
        if name(&left, "g") {
            kept += 1;
        } else {
            lost += 1;
        }
        synced.sync(ROOT).expect("sync");
        synced.sync(file).expect("sync");
        let left = synced.survivor(&[]);
        assert!(name(&left, "g") && name(&left, "d") && !name(&left, "f"));
        assert_eq!(bytes(&left, file).len(), 100);
    }
    assert!(lost > 10 && kept > 10, "{lost} {kept}");
}

#[test]
fn a_lying_disk_keeps_nothing_for_certain() {
    let lost = (0..50).filter(|seed| {
        let (mut disk, file) = with_file(*seed);
        disk.lying = true;
        disk.write(file, 0, &[1; 512], true).expect("write");
        disk.sync(file).expect("sync");
        bytes(&disk.survivor(&[]), file)[0] == 0
    });
    assert!(lost.count() > 5);
}

#[test]
fn a_full_disk_refuses_and_takes_again() {
    let (mut disk, file) = with_file(1);
    disk.capacity = 8192;
    assert_eq!(disk.allocate(file, 8193), Err(Errno::NOSPC));
    let other = disk
        .create(ROOT, OsStr::new("g"), Kind::File, 0o600, OWNER)
        .expect("create");
    disk.allocate(other, 4096).expect("allocate");
    assert_eq!(disk.write(other, 4096, &[1], false), Err(Errno::NOSPC));
    disk.remove(ROOT, OsStr::new("f"), Kind::File)
        .expect("remove");
    disk.write(other, 4096, &[1], false).expect("write");
}
