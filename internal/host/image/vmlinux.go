package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/xi2/xz"

	"github.com/roosthq/roost/internal/fault"
)

// Where a bzImage says what is in it (the kernel's Documentation/arch/x86/boot.rst).
const (
	setupSectors  = 0x1f1 // of 512 bytes, 0 means 4; one more, the boot sector, lies before them
	setupMagic    = 0x202 // "HdrS"
	setupVersion  = 0x206
	payloadOffset = 0x248 // from the end of the setup sectors
	payloadLength = 0x24c
	setupEnd      = 0x250
	// payloadSince is the first version of the header that has the payload's place.
	payloadSince = 0x0208
)

const (
	// maxKernelELF is far above any kernel: a damaged length shall not fill the disk.
	maxKernelELF = 1 << 30
	// maxKernelWindow is what compressors may look back: zstd at its highest level, whole kernels.
	maxKernelWindow = 512 << 20
)

// ELF writes the uncompressed kernel (vmlinux, x86-64) that is in a bzImage to dst, synced and
// read-only. dst appears whole or not at all. What is no such kernel is fault.Invalid.
func ELF(bzImage, dst string) error {
	err := writeELF(bzImage, dst)
	return fail(err, "extract vmlinux of", bzImage)
}

func writeELF(bzImage, dst string) (err error) {
	in, err := os.Open(bzImage)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	payload, err := kernelPayload(in)
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(dst), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIfThere(out.Name()))
		}
	}()
	err = unpackKernelPayload(out, payload)
	if err == nil {
		err = checkKernelELF(out)
	}
	if err = errors.Join(err, out.Chmod(0o400), out.Sync(), out.Close()); err != nil {
		return err
	}
	if err = os.Rename(out.Name(), dst); err != nil {
		return err
	}
	return syncPath(filepath.Dir(dst))
}

// kernelPayload is the compressed kernel in a bzImage, its size when unpacked included.
func kernelPayload(in *os.File) ([]byte, error) {
	var h [setupEnd]byte
	if _, err := in.ReadAt(h[:], 0); errors.Is(err, io.EOF) || err == nil && string(h[setupMagic:setupMagic+4]) != "HdrS" {
		return nil, notKernel("it is no bzImage")
	} else if err != nil {
		return nil, err
	}
	if v := binary.LittleEndian.Uint16(h[setupVersion:]); v < payloadSince {
		return nil, notKernel(fmt.Sprintf("its boot protocol is %d.%d; 2.8 is the oldest that says where the kernel is", v>>8, v&0xff))
	}
	sectors := int64(h[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	at := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(h[payloadOffset:]))
	length := int64(binary.LittleEndian.Uint32(h[payloadLength:]))
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	if length < 8 || at+length > st.Size() {
		return nil, notKernel(fmt.Sprintf("it is cut off: the kernel is said to lie at %d to %d of %d bytes", at, at+length, st.Size()))
	}
	payload := make([]byte, length)
	_, err = in.ReadAt(payload, at)
	return payload, err
}

// unpackKernelPayload writes the kernel in a payload. The last four bytes are the size of what
// is packed: the kernel's build puts them there, in gzip's own format they are a part of it.
func unpackKernelPayload(out io.Writer, payload []byte) error {
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxKernelELF {
		return notKernel(fmt.Sprintf("it is said to have %d bytes unpacked", size))
	}
	name, r, err := kernelReader(payload)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // read only
	n, err := io.Copy(out, io.LimitReader(r, size+1))
	var pathErr *os.PathError
	switch {
	case errors.As(err, &pathErr): // the writer's
		return err
	case err != nil:
		return notKernel(name + ": " + err.Error())
	case n != size:
		return notKernel(fmt.Sprintf("%s gives %d bytes or more, it is said to be %d", name, n, size))
	}
	return nil
}

// kernelReader unpacks a payload by what it begins with.
func kernelReader(payload []byte) (name string, r io.ReadCloser, err error) {
	packed := bytes.NewReader(payload[:len(payload)-4])
	switch {
	case bytes.HasPrefix(payload, []byte("\x1f\x8b")):
		name = "gzip"
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(payload)); err == nil {
			z.Multistream(false)
			r = z
		}
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		name = "xz"
		var z *xz.Reader
		if z, err = xz.NewReader(packed, maxKernelWindow); err == nil {
			r = io.NopCloser(z)
		}
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		name = "zstd"
		var z *zstd.Decoder
		if z, err = zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxKernelWindow)); err == nil {
			r = z.IOReadCloser()
		}
	case bytes.HasPrefix(payload, []byte("\x02\x21\x4c\x18")):
		name, r = "lz4", io.NopCloser(lz4.NewReader(packed))
	default:
		return "", nil, notKernel(fmt.Sprintf("it is packed in a way that Roost does not know (%x)", payload[:4]))
	}
	if err != nil {
		return "", nil, notKernel(name + ": " + err.Error())
	}
	return name, r, nil
}

// checkKernelELF refuses what a VMM could not start.
func checkKernelELF(f io.ReaderAt) error {
	file, err := elf.NewFile(f)
	if err != nil {
		return notKernel("what is in it is no ELF file: " + err.Error())
	}
	loads := 0
	for _, p := range file.Progs {
		if p.Type == elf.PT_LOAD {
			loads++
		}
	}
	if file.Class != elf.ELFCLASS64 || file.Machine != elf.EM_X86_64 || file.Type != elf.ET_EXEC || loads == 0 || file.Entry == 0 {
		return notKernel(fmt.Sprintf("what is in it is no x86-64 kernel: %s, %s, %s, %d segments, entry %#x",
			file.Class, file.Machine, file.Type, loads, file.Entry))
	}
	return nil
}

func notKernel(why string) error { return fault.New(fault.Invalid, "", "", why) }
