package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// keptNot are file systems that forget, or are not a disk's own.
var keptNot = map[int64]string{
	unix.TMPFS_MAGIC: "tmpfs: everything is gone after a reboot", unix.RAMFS_MAGIC: "ramfs: everything is gone after a reboot",
	unix.OVERLAYFS_SUPER_MAGIC: "an overlay: a container's, gone with it", unix.NFS_SUPER_MAGIC: "NFS: locks and sync are another machine's",
}

// dataMount looks at how the file system of the data directory is mounted.
func (s System) dataMount(context.Context) Finding {
	const name = "data directory"
	fs, at, err := nearestFS(s.Data)
	if err != nil {
		return fail(name, err.Error(), "make the data directory: "+s.Data)
	}
	switch flags := fs.Flags; {
	case flags&unix.ST_RDONLY != 0:
		return fail(name, at+" is mounted read-only", "mount -o remount,rw there")
	case flags&unix.ST_NOEXEC != 0:
		return fail(name, at+" is mounted noexec: gVisor's builds and Firecracker's jails are run from there",
			"mount -o remount,exec "+at+", and in /etc/fstab")
	case flags&unix.ST_NODEV != 0:
		return warn(name, at+" is mounted nodev: Firecracker's jails have device nodes there, and find no /dev/kvm",
			"mount -o remount,dev "+at+", and in /etc/fstab")
	}
	if why := keptNot[fs.Type]; why != "" {
		return warn(name, at+" is on "+why, "put the data on a disk's ext4, xfs or btrfs with --data")
	}
	return ok(name, at+" may hold programs and device nodes")
}

// nearestFS is the file system of a path or of its nearest parent that is there.
func nearestFS(path string) (fs unix.Statfs_t, at string, err error) {
	for at = path; ; at = filepath.Dir(at) {
		err = unix.Statfs(at, &fs)
		if err == nil || at == "/" || at == "." {
			return fs, at, err
		}
	}
}

// swap would write guests' memory, keys included, to a disk.
func (s System) swap(context.Context) Finding {
	const name = "swap"
	table, err := s.read("proc/swaps")
	if err != nil {
		return warn(name, err.Error(), "mount /proc")
	}
	var plain []string
	lines := strings.Split(table, "\n")
	for _, line := range lines[1:] {
		if where, _, _ := strings.Cut(line, " "); where != "" && !s.encrypted(strings.TrimSpace(where)) {
			plain = append(plain, strings.TrimSpace(strings.Fields(where)[0]))
		}
	}
	switch {
	case len(plain) > 0:
		return warn(name, "on "+strings.Join(plain, ", ")+", not encrypted: guests' memory is written there as it is",
			"swapoff -a and take it out of /etc/fstab, or encrypt it with a random key (crypttab: swap /dev/… /dev/urandom swap)")
	case len(lines) > 1:
		return ok(name, "encrypted, or in memory")
	}
	return ok(name, "none")
}

// encrypted knows dm-crypt by its name for the kernel, and zram, which is memory.
func (s System) encrypted(path string) bool {
	device := filepath.Base(path)
	if strings.HasPrefix(device, "zram") {
		return true
	}
	if target, err := filepath.EvalSymlinks(filepath.Join("/", s.Root, path)); err == nil {
		device = filepath.Base(target) // /dev/mapper/swap is a link to /dev/dm-0
	}
	uuid, err := s.read(fmt.Sprintf("sys/block/%s/dm/uuid", device))
	return err == nil && strings.HasPrefix(uuid, "CRYPT-")
}
