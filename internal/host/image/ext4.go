package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	blockBytes = 4096
	inodeBytes = 256
	// inodeRatio is one inode for so many bytes, kept as the disk grows.
	inodeRatio = 16384
	leastRatio = 1024
	// longSymlink is where a link's target no longer lies in the inode.
	longSymlink = 60
	journalMB   = 8
	// growBlocks is how far the file system may grow while mounted: 2 TiB. It costs 1 MiB of
	// reserved descriptors in each of the few groups that have a copy.
	growBlocks = 2 << 40 / blockBytes
)

// features are named one by one, so that the image does not depend on the host's mke2fs.conf.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// rootForm is what both file systems of a template are made with.
type rootForm struct {
	// name tells the file systems of one template from another's.
	name    string
	slackMB int
	// epoch, in seconds: of the tree, times behind it become it.
	epoch string
}

func (r Recipe) form() rootForm { return rootForm{name: r.Name, slackMB: r.SlackMB, epoch: sourceDate} }

// makeDisk writes an ext4 image with the content of root, and no mount. The image is sparse:
// free space takes none on the host, nor do holes of files.
func makeDisk(ctx context.Context, r rootForm, root, disk string) error {
	used, err := measure(root)
	if err != nil {
		return fail(err, "measure", root)
	}
	layout := used.layout(r.slackMB)
	env := []string{"E2FSPROGS_FAKE_TIME=" + sourceDate, "SOURCE_DATE_EPOCH=" + sourceDate}
	tool := command{env: env}
	err = tool.run(ctx, "mke2fs", mke2fsArgs(r, root, disk, layout)...)
	if err != nil {
		return fault.Wrap(err, "make disk of template", r.name)
	}
	// Growing would zero the inode tables of every new group, 16 MB a GB, though what lies
	// beyond the image reads as zeros already and checksums mark the tables unused.
	err = tool.run(ctx, "tune2fs", "-E", "mount_opts=noinit_itable", disk)
	if err != nil {
		return fault.Wrap(err, "set up disk of template", r.name)
	}
	return fault.Wrap(tool.run(ctx, "e2fsck", "-fn", disk), "check disk of template", r.name)
}

func mke2fsArgs(r rootForm, root, disk string, l layout) []string {
	seed := uuidOf("hash seed of " + r.name)
	return []string{
		"-q", "-F", "-t", "ext4", "-d", root, "-L", "roost-root", "-U", uuidOf("root of " + r.name),
		"-O", features, "-b", strconv.Itoa(blockBytes), "-I", strconv.Itoa(inodeBytes),
		"-i", strconv.FormatInt(l.ratio, 10), "-m", "0", "-J", "size=" + strconv.Itoa(journalMB),
		"-E", fmt.Sprintf("resize=%d,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=%s", growBlocks, seed),
		disk, strconv.FormatInt(l.bytes>>10, 10) + "k",
	}
}

// layout is the size of a disk, and for how many bytes of it there is an inode.
type layout struct{ bytes, ratio int64 }

// layout has room for the content, what ext4 needs around it, and slack, in whole MiB. A tree of
// very many small files gets more inodes than the usual.
func (c content) layout(slackMB int) layout {
	l := layout{ratio: inodeRatio}
	for {
		inodes := c.bytes / l.ratio * inodeBytes
		if l.ratio != inodeRatio { // the slack has no room for its own inodes any more
			inodes = (c.bytes + int64(slackMB)<<20) * inodeBytes / (l.ratio - inodeBytes)
		}
		l.bytes = wholeMB(c.bytes + c.bytes/32 + inodes + (journalMB+8)<<20 + int64(slackMB)<<20)
		wanted := c.files + c.files/8 + 1024
		if l.bytes/l.ratio >= wanted {
			return l
		}
		if l.ratio == leastRatio {
			l.bytes = wholeMB(wanted * l.ratio)
			return l
		}
		l.ratio /= 2
	}
}

func wholeMB(n int64) int64 { return (n + 1<<20 - 1) >> 20 << 20 }

// content is what a file tree holds: inodes, and bytes in whole blocks.
type content struct{ files, bytes int64 }

// measure counts hard links once, and of files the parts that hold data.
func measure(root string) (content, error) {
	var c content
	seen := map[inode]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if ok && !e.IsDir() && st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		n, err := blocksOf(path, info)
		c.files++
		c.bytes += n
		return err
	})
	return c, err
}

type inode struct{ dev, ino uint64 }

func blocksOf(path string, info fs.FileInfo) (int64, error) {
	n := int64(0)
	switch {
	case info.Mode().IsRegular() && hasHoles(info):
		parts, err := dataOf(path, info.Size())
		if err != nil {
			return 0, err
		}
		for _, p := range parts {
			n += (p.length + 2*blockBytes - 1) / blockBytes * blockBytes
		}
	case info.IsDir(), info.Mode().IsRegular(), info.Mode()&fs.ModeSymlink != 0 && info.Size() >= longSymlink:
		n = (info.Size() + blockBytes - 1) / blockBytes * blockBytes
	}
	if info.Mode().IsRegular() || info.IsDir() {
		if size, err := unix.Llistxattr(path, nil); err == nil && size > 0 {
			n += blockBytes // of its own, unless they are small
		}
	}
	return n, nil
}

// uuidOf is the same identifier for the same words. Sandboxes of a template share it: no two
// of them ever meet on one machine's disks.
func uuidOf(words string) string {
	sum := sha256.Sum256([]byte(words))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
