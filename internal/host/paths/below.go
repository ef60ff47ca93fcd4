package paths

import (
	"os"
	"path/filepath"
)

// Below says whether a file lies below the directory root, and where. Files decide, not names: a
// data directory may be reached by a link or a bind mount, and what was written down under one of
// its names is meant under the others too. root joined with rel is the same file; where a bind
// mount lies between the two names, hard links can be made of that one only.
func Below(path, root string) (rel string, below bool, err error) {
	top, err := os.Stat(root)
	if err != nil {
		return "", false, err
	}
	// Of the file itself no link is followed: whatever it is, it lies where its name does.
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", false, err
	}
	rel = filepath.Base(path)
	if _, err := os.Lstat(filepath.Join(dir, rel)); err != nil {
		return "", false, err
	}
	for {
		at, err := os.Stat(dir)
		if err != nil {
			return "", false, err
		}
		if os.SameFile(at, top) {
			return rel, true, nil
		}
		if dir == filepath.Dir(dir) {
			return "", false, nil
		}
		dir, rel = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rel)
	}
}
