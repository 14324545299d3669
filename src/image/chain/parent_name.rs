//! What the names by which others than XO record a parent lead to.
//!
//! XO keeps a path with slashes, relative to the child's directory. Others record a Windows path or just a
//! file name, relative or absolute. Files that were copied somewhere else since are still beside each
//! other, as a rule, so of an absolute path the file's name counts.

/// The path to look at, with slashes and relative to the child's directory; `None` when the name
/// tells no file. XO's own absolute paths, which begin with a slash, are not for here.
pub(in crate::image) fn relative_path(name: &str) -> Option<String> {
    let path = name.replace('\\', "/");
    let drive = path.as_bytes().get(1) == Some(&b':');
    let path = match drive || path.starts_with('/') {
        // Of another machine, or another place: its directories mean nothing here.
        true => path.rsplit(['/', ':']).next()?,
        false => &path,
    };
    let file = path.rsplit('/').next()?;
    let is_file = !file.is_empty() && file != "." && file != ".." && !path.contains('\0');
    is_file.then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_paths_become_relative_ones() {
        for (name, path) in [
            ("base.vhd", Some("base.vhd")),
            (".\\base.vhd", Some("./base.vhd")),
            ("..\\..\\a b\\base.vhd", Some("../../a b/base.vhd")),
            ("C:\\VMs\\web 01\\web 01.vhd", Some("web 01.vhd")),
            ("c:base.vhd", Some("base.vhd")),
            ("\\\\server\\share\\base.vhd", Some("base.vhd")),
            ("\\\\?\\C:\\base.vhd", Some("base.vhd")),
            ("\\\\?\\Volume{1}\\x\\base.vhd", Some("base.vhd")),
            ("\\Users/a/My Disk.vhd", Some("My Disk.vhd")),
            ("..", None),
            ("C:\\", None),
            ("", None),
            ("a\\", None),
        ] {
            assert_eq!(relative_path(name).as_deref(), path, "{name}");
        }
    }
}
