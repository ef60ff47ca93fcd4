package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// Names in the jail; see the package comment.
const (
	apiSocket   = "api.sock"
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	diskNode    = "disk"
	nextNode    = "disk.next"
	memoryFile  = "memory"
	pagerSocket = "pager.sock"
	savedFile   = "saved"
	stateFile   = "state"
	dirtyFile   = "dirty"
	filterFile  = "seccomp.bpf"

	jailDir = "jail"
	// fullMark lies beside the jail's root: the VM cannot reach it.
	fullMark = "full"
)

// inJail is a name as the VMM says it.
func inJail(name string) string { return "/" + name }

// jail is the root directory of one VM.
type jail struct {
	// base holds everything that the jailer is told to make below; root is the VMM's /.
	base, root string
	id         string
	uid, gid   int
}

// jailID names a start for the jailer, and so its cgroup.
func jailID(cfg vmm.Config) string { return fmt.Sprintf("fc-%s-%d", cfg.ID, cfg.UID) }

func (d *Driver) jailOf(cfg vmm.Config) jail {
	id, base := jailID(cfg), filepath.Join(cfg.Dir, jailDir)
	return jail{
		base: base, root: filepath.Join(base, filepath.Base(d.o.Binary), id, "root"),
		id: id, uid: cfg.UID, gid: cfg.GID,
	}
}

// jailAt is the jail of a VM that was started before.
func jailAt(h vmm.Handle) jail {
	root := filepath.Dir(h.Socket)
	return jail{
		base: filepath.Join(filepath.Dir(h.Console), jailDir), root: root,
		id: filepath.Base(filepath.Dir(root)), uid: h.UID, gid: h.UID,
	}
}

func (j jail) path(name string) string { return filepath.Join(j.root, name) }

// make makes the jail anew, in place of what a VM that died with its agent left.
func (j jail) make() error {
	if err := j.remove(); err != nil {
		return err
	}
	return fault.Wrap(os.MkdirAll(j.root, 0o700), "make", "jail")
}

// remove takes everything away. A drive that is a file is root's alone again.
func (j jail) remove() error {
	for _, name := range []string{diskNode, nextNode} {
		j.takeBack(name)
	}
	return fault.Wrap(os.RemoveAll(j.base), "remove", "jail")
}

// takeBack: what the VM can write by a hard link is root's again.
func (j jail) takeBack(name string) {
	info, err := os.Lstat(j.path(name))
	if err == nil && info.Mode().IsRegular() {
		_ = os.Lchown(j.path(name), os.Geteuid(), os.Getegid())
	}
}

// put gives the VM a file to read: itself where it is on the same file system and may be read, else
// a copy.
func (j jail) put(path, name string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fault.Wrap(err, "put into jail", path)
	}
	if info.Mode().Perm()&0o004 == 0 {
		return fault.Wrap(copyFile(path, j.path(name)), "put into jail", path)
	}
	return j.linkOrCopy(path, name)
}

func (j jail) linkOrCopy(path, name string) error {
	err := link(path, j.path(name))
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EMLINK) {
		err = copyFile(path, j.path(name))
	}
	return fault.Wrap(err, "put into jail", path)
}

// putMemory links the memory file, which many VMs map: it may be read by all where only root gets to
// it, which is so in sandboxes' directories and in jails.
func (j jail) putMemory(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fault.Wrap(err, "put into jail", path)
	}
	if info.Mode().Perm()&0o004 == 0 {
		if !private(path) {
			return fault.Wrap(copyFile(path, j.path(memoryFile)), "put into jail", path)
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o004); err != nil {
			return fault.Wrap(err, "put into jail", path)
		}
	}
	return j.linkOrCopy(path, memoryFile)
}

// putPager links the page server's socket.
func (j jail) putPager(path string) error {
	return fault.Wrap(link(path, j.path(pagerSocket)), "put into jail", path)
}

// userfaultfd is a device since Linux 6.1. Jailers miss it where its number is below 100.
const userfaultfd = "dev/userfaultfd"

// putUserfaultfd lets the VMM make a userfaultfd, for which it has no privilege otherwise.
func (j jail) putUserfaultfd() error {
	var st unix.Stat_t
	err := unix.Stat("/"+userfaultfd, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil // then the kernel's settings decide
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fault.New(fault.FailedPrecondition, "use", "/"+userfaultfd, "not a device")
	}
	err = unix.Mknod(j.path(userfaultfd), unix.S_IFCHR|0o600, int(st.Rdev))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		err = os.Lchown(j.path(userfaultfd), j.uid, j.gid)
	}
	return fault.Wrap(err, "put into jail", userfaultfd)
}

// link follows symbolic links: a link in the jail would lead out of it.
func link(path, to string) error {
	return unix.Linkat(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
}

// putDrive gives the VM a drive under a name: a node of its own for a block device, else the file.
func (j jail) putDrive(n vmm.Node, name string) error {
	var st unix.Stat_t
	if err := unix.Stat(n.Path, &st); err != nil {
		return fault.Wrap(err, "put into jail", n.Path)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return j.putDevice(st.Rdev, name)
	}
	at := j.path(name)
	err := link(n.Path, at)
	if errors.Is(err, unix.EXDEV) {
		return fault.New(fault.FailedPrecondition, "put into jail", n.Path, "it is on another file system than the jail").
			WithHint("keep disks that are files on the file system of the sandboxes' directories")
	}
	if err == nil {
		err = errors.Join(os.Lchown(at, j.uid, j.gid), os.Chmod(at, 0o600))
	}
	return fault.Wrap(err, "put into jail", n.Path)
}

// putDevice gives the VM a block device under a name.
func (j jail) putDevice(number uint64, name string) error {
	at := j.path(name)
	err := unix.Mknod(at, unix.S_IFBLK|0o600, int(number))
	if err == nil {
		err = errors.Join(os.Lchown(at, j.uid, j.gid), os.Chmod(at, 0o600))
	}
	return fault.Wrap(err, "put into jail", fmt.Sprintf("device %d:%d", unix.Major(number), unix.Minor(number)))
}

// putOut makes the files that the VMM writes: it can make none itself. The memory file has its size
// from the start, so that saves are merged into it.
func (j jail) putOut(memoryBytes int64) error {
	for name, size := range map[string]int64{stateFile: 0, dirtyFile: memoryBytes} {
		f, err := os.OpenFile(j.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fault.Wrap(err, "put into jail", name)
		}
		err = errors.Join(sparse(f), f.Truncate(size), f.Chown(j.uid, j.gid), f.Close())
		if err != nil {
			return fault.Wrap(err, "put into jail", name)
		}
	}
	return nil
}

// sparse checks that the file system tells data from holes page by page: a save says by holes which
// pages a guest has not written.
func sparse(f *os.File) error {
	const page, at = 4096, 3 * 4096
	if _, err := f.WriteAt(make([]byte, page), at); err != nil {
		return err
	}
	if err := f.Truncate(64 * page); err != nil {
		return err
	}
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil {
		return err
	}
	hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
	if err != nil {
		return err
	}
	if data != at || hole != at+page {
		return fault.New(fault.FailedPrecondition, "use", "file system", "it does not keep holes of single pages").
			WithHint("keep sandboxes' directories on ext4 or xfs with blocks of 4096 bytes")
	}
	return f.Truncate(0)
}

// close makes the jail's directories root's: from now on the VMM can neither make nor exchange a
// file. It is done before the guest runs.
func (j jail) close() error {
	for _, dir := range []string{"", "dev", "dev/net", "run"} {
		path := j.path(dir)
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && !info.IsDir() {
			err = syscall.ENOTDIR
		}
		if err == nil {
			err = errors.Join(os.Lchown(path, os.Geteuid(), os.Getegid()), os.Chmod(path, 0o755))
		}
		if err != nil {
			return fault.Wrap(err, "close", "jail")
		}
	}
	return nil
}

// dial connects to the API: to the socket itself, never to where a link leads.
func (j jail) dial(ctx context.Context) (net.Conn, error) {
	fd, err := unix.Open(j.path(apiSocket), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s is no socket", apiSocket)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// inJail checks that the process's root directory is the jail.
func (vm *VM) inJail() error {
	its, err := os.Stat(fmt.Sprintf("/proc/%d/root", vm.handle.PID))
	if err != nil {
		return err
	}
	jail, err := os.Stat(vm.jail.root)
	if err != nil {
		return err
	}
	if !os.SameFile(its, jail) {
		return errors.New("its root directory is not the jail")
	}
	return nil
}
