package qcow2

import (
	"context"
	"fmt"
	"os"

	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// Grow makes a live disk larger. A Grow whose record was lost may be repeated: the image may
// already have the new size.
func (Driver) Grow(ctx context.Context, live disk.Live, sizeBytes int64) (disk.Live, error) {
	if err := ctx.Err(); err != nil {
		return disk.Live{}, layerfile.Failed(err, "grow", live.Path)
	}
	if err := layerfile.CheckGrow(live, sizeBytes, maxSize); err != nil {
		return disk.Live{}, err
	}
	img, err := openAnySize(live.Path, os.O_RDWR)
	if err != nil {
		return disk.Live{}, err
	}
	defer img.close()
	if img.size != live.SizeBytes && img.size != sizeBytes {
		return disk.Live{}, layerfile.Refused(live.Path, fmt.Sprintf("its header gives %d bytes, its record %d", img.size, live.SizeBytes))
	}
	if err := img.checkUnused("grow"); err != nil {
		return disk.Live{}, err
	}
	if err := img.resize(sizeBytes); err != nil {
		return disk.Live{}, layerfile.Failed(err, "grow", live.Path)
	}
	live.SizeBytes = sizeBytes
	return live, nil
}

// resize writes the new size into the header, whose fields lie in one sector, after the L1
// table's new entries are on disk as zeros: QEMU leaves what it likes behind a table's end.
func (img *image) resize(sizeBytes int64) error {
	h := img.header
	h.size = sizeBytes
	h.l1Size = max(img.l1Size, l1Entries(sizeBytes))
	fresh := make([]byte, 8*(h.l1Size-img.l1Size))
	if _, err := img.file.WriteAt(fresh, img.l1Offset+8*img.l1Size); err != nil {
		return err
	}
	if err := img.file.Sync(); err != nil {
		return err
	}
	if err := img.writeSize(h); err != nil {
		return err
	}
	img.header = h
	return img.file.Sync()
}

// writeSize replaces the size and the L1 size (24 to 40, with the encryption method, none,
// between them) and nothing else: QEMU may have lengthened the header since.
func (img *image) writeSize(h header) error {
	_, err := img.file.WriteAt(h.encode()[24:40], 24)
	return err
}
