package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

const (
	blockBytes = 4096
	inodeBytes = 256
	// inodeRatio is one inode for so many bytes, kept as the disk grows.
	inodeRatio = 16384
	journalMB  = 8
	// growBlocks is how far the file system may grow while mounted: 2 TiB. It costs 1 MiB of
	// reserved descriptors in each of the few groups that have a copy.
	growBlocks = 2 << 40 / blockBytes
)

// features are named one by one, so that the image does not depend on the host's mke2fs.conf.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// makeDisk writes an ext4 image with the content of root, and no mount. The image is sparse:
// free space takes none on the host.
func makeDisk(ctx context.Context, r Recipe, root, disk string) error {
	used, err := contentBytes(root)
	if err != nil {
		return fail(err, "measure", root)
	}
	env := []string{"E2FSPROGS_FAKE_TIME=" + sourceDate, "SOURCE_DATE_EPOCH=" + sourceDate}
	tool := command{env: env}
	err = tool.run(ctx, "mke2fs", mke2fsArgs(r, root, disk, diskBytes(used, r.SlackMB))...)
	if err != nil {
		return fault.Wrap(err, "make disk of template", r.Name)
	}
	// Growing would zero the inode tables of every new group, 16 MB a GB, though what lies
	// beyond the image reads as zeros already and checksums mark the tables unused.
	err = tool.run(ctx, "tune2fs", "-E", "mount_opts=noinit_itable", disk)
	if err != nil {
		return fault.Wrap(err, "set up disk of template", r.Name)
	}
	return fault.Wrap(tool.run(ctx, "e2fsck", "-fn", disk), "check disk of template", r.Name)
}

func mke2fsArgs(r Recipe, root, disk string, size int64) []string {
	seed := uuidOf("hash seed of " + r.Name)
	return []string{
		"-q", "-F", "-t", "ext4", "-d", root, "-L", "roost-root", "-U", uuidOf("root of " + r.Name),
		"-O", features, "-b", strconv.Itoa(blockBytes), "-I", strconv.Itoa(inodeBytes),
		"-i", strconv.Itoa(inodeRatio), "-m", "0", "-J", "size=" + strconv.Itoa(journalMB),
		"-E", fmt.Sprintf("resize=%d,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=%s", growBlocks, seed),
		disk, strconv.FormatInt(size>>10, 10) + "k",
	}
}

// diskBytes is content, what ext4 needs around it, and slack, in whole MiB.
func diskBytes(used int64, slackMB int) int64 {
	overhead := used/32 + used/inodeRatio*inodeBytes + (journalMB+8)<<20
	return (used + overhead + int64(slackMB)<<20 + 1<<20 - 1) >> 20 << 20
}

// contentBytes is what the files take in whole blocks, hard links counted once.
func contentBytes(root string) (int64, error) {
	var total int64
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err := filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !e.IsDir() && st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		if e.IsDir() || info.Mode().IsRegular() {
			total += (info.Size() + blockBytes - 1) / blockBytes * blockBytes
		}
		return nil
	})
	return total, err
}

// uuidOf is the same identifier for the same words. Sandboxes of a template share it: no two
// of them ever meet on one machine's disks.
func uuidOf(words string) string {
	sum := sha256.Sum256([]byte(words))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
