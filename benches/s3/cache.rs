//! A warm `--cache-dir` beside the same VHD directories on the local disk.

use std::path::Path;

use crate::Run;
use crate::figures::Wanted;
use crate::sample::Sample;
use crate::sequential::dd_mounted;
use crate::support::chain::Storage;
use crate::support::mountpoint::TempDir;
use crate::support::vhd_dir::Filter;

pub fn all(run: &mut Run) {
    let size = run.size;
    for (name, filter) in [("brotli", Filter::Brotli), ("plain", Filter::Absent)] {
        let sample = Sample::full(run, name, Storage::Dir(filter), 4);
        let server = run.server(None);
        let url = server.url(sample.name);
        let kept = TempDir::new();
        let options = [
            "--cache-dir",
            kept.path().to_str().expect("text"),
            "--cache-dir-size=8G",
        ];
        dd_mounted(Path::new(&url), &options, size);
        dd_mounted(&sample.repository, &[], size);
        let seconds = |rate: f64| size as f64 / rate / 1e6;
        run.figures.compare(
            run.rounds,
            &format!("dd from a warm cache directory, {name}"),
            "s",
            "local VHD directories",
            Wanted::AtMost(1.2),
            || seconds(dd_mounted(Path::new(&url), &options, size)),
            || seconds(dd_mounted(&sample.repository, &[], size)),
        );
        sample.remove();
    }
}
