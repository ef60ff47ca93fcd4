package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// file writes a regular file; blocks of zeros become holes, as holes are.
func (u *unpacker) file(dir int, base string, h *tar.Header, m meta, content io.Reader) error {
	parts, size, err := partsOf(h)
	if err != nil {
		return err
	}
	if u.sizes += size; u.sizes > maxHoles {
		return fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("files have more than %d GB, holes included", maxHoles>>30))
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return twice(err)
	}
	for _, p := range parts {
		if err = u.write(fd, p, content); err != nil {
			break
		}
	}
	if err == nil {
		err = errors.Join(unix.Ftruncate(fd, size), m.set(fd))
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	return touch(dir, base, m.at)
}

// partsOf says where the content that follows a header belongs.
func partsOf(h *tar.Header) (parts []extent, size int64, err error) {
	text, sparse := h.PAXRecords[sparseSize]
	if !sparse {
		return []extent{{0, h.Size}}, h.Size, nil
	}
	size, err = strconv.ParseInt(text, 10, 64)
	if err != nil || size < 0 {
		return nil, 0, refuse("a size that cannot be")
	}
	parts, err = parseMap(h.PAXRecords[sparseMap])
	if err != nil {
		return nil, 0, err
	}
	end, sum := int64(0), int64(0)
	for _, p := range parts {
		if p.at < end || p.length <= 0 || p.length > size || p.at > size-p.length {
			return nil, 0, refuse("a map of holes that cannot be")
		}
		end, sum = p.end(), sum+p.length
	}
	if sum != h.Size {
		return nil, 0, refuse("a map of holes for another content")
	}
	return parts, size, nil
}

func parseMap(text string) ([]extent, error) {
	if text == "" {
		return nil, nil
	}
	words := strings.Split(text, ",")
	if len(words)%2 != 0 {
		return nil, refuse("a map of holes that is cut")
	}
	parts := make([]extent, 0, len(words)/2)
	for i := 0; i < len(words); i += 2 {
		at, err := strconv.ParseInt(words[i], 10, 64)
		length, lerr := strconv.ParseInt(words[i+1], 10, 64)
		if err != nil || lerr != nil || at < 0 {
			return nil, refuse("a map of holes that is not one")
		}
		parts = append(parts, extent{at, length})
	}
	return parts, nil
}

// write writes one part.
func (u *unpacker) write(fd int, p extent, content io.Reader) error {
	for p.length > 0 {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, u.buf[:min(p.length, int64(len(u.buf)))])
		if err != nil {
			return unreadable(err)
		}
		if err := u.writeData(fd, u.buf[:n], p.at); err != nil {
			return err
		}
		p.at, p.length = p.at+int64(n), p.length-int64(n)
	}
	return nil
}

var zeroBlock = make([]byte, blockBytes)

// writeData leaves blocks of zeros out.
func (u *unpacker) writeData(fd int, data []byte, at int64) error {
	for len(data) > 0 {
		zeros := 0
		for zeros < len(data) && isZero(data[zeros:], at+int64(zeros)) {
			zeros += inBlock(data[zeros:], at+int64(zeros))
		}
		data, at = data[zeros:], at+int64(zeros)
		full := 0
		for full < len(data) && !isZero(data[full:], at+int64(full)) {
			full += inBlock(data[full:], at+int64(full))
		}
		if err := u.pwrite(fd, data[:full], at); err != nil {
			return err
		}
		data, at = data[full:], at+int64(full)
	}
	return nil
}

// inBlock is how much of data lies in the block of at.
func inBlock(data []byte, at int64) int { return int(min(int64(len(data)), blockBytes-at%blockBytes)) }

func isZero(data []byte, at int64) bool {
	n := inBlock(data, at)
	return bytes.Equal(data[:n], zeroBlock[:n])
}

func (u *unpacker) pwrite(fd int, data []byte, at int64) error {
	if u.written += int64(len(data)); u.written > u.maxBytes {
		return fault.New(fault.ResourceExhausted, "", "", fmt.Sprintf("there are more than %d bytes", u.maxBytes))
	}
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fail(err, "write", "file")
		}
		data, at = data[n:], at+int64(n)
	}
	u.tell()
	return nil
}

// tell reports progress, a few times a second.
func (u *unpacker) tell() {
	const often = 500 * time.Millisecond
	if u.progress == nil || time.Since(u.told) < often {
		return
	}
	u.told = time.Now()
	u.progress(u.written)
}
