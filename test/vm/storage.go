package vm

import (
	"fmt"
	"os"
	"os/exec"
)

// nameless makes a file that has no name: it goes with the last process that has it open.
func nameless(what string) (*os.File, error) {
	f, err := os.CreateTemp("", "roost-lane-")
	if err != nil {
		return nil, fmt.Errorf("make a file for %s: %w", what, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// makeScratch makes the file system that tests write on: sparse.
func makeScratch(mb int) (*os.File, error) {
	if mb == 0 {
		mb = defaultScratchMB
	}
	f, err := nameless("scratch")
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(mb) << 20); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, tool(f, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-m", "0", openFile)
}

// makeTree makes an EROFS image of a folder.
func makeTree(dir string) (*os.File, error) {
	f, err := nameless(dir)
	if err != nil {
		return nil, err
	}
	return f, tool(f, "mkfs.erofs", "--quiet", "-Enoinline_data", openFile, dir)
}

// openFile is how a tool names the file that it was given.
const openFile = "/proc/self/fd/3"

func tool(f *os.File, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

// sameFile tells whether both outputs go to one place.
func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
