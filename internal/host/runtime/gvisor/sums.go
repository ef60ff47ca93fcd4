package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// checkSizes refuses a capture of which something is missing or cut, before anything starts.
func checkSizes(dir string, files []savedFile) error {
	for _, want := range files {
		info, err := os.Lstat(filepath.Join(dir, want.Name))
		if errors.Is(err, fs.ErrNotExist) {
			return damaged(dir, want.Name, "it is missing")
		}
		if err == nil && !info.Mode().IsRegular() {
			return damaged(dir, want.Name, "it is no plain file")
		}
		if err != nil {
			return fault.Wrap(err, "verify", "capture")
		}
		if info.Size() != want.Size {
			return damaged(dir, want.Name, fmt.Sprintf("it has %d bytes, not %d", info.Size(), want.Size))
		}
	}
	return nil
}

// checkSums reads a capture whole.
func checkSums(ctx context.Context, dir string, files []savedFile) error {
	for _, want := range files {
		sum, err := sumOf(ctx, filepath.Join(dir, want.Name))
		if err != nil {
			return fault.Wrap(err, "verify", "capture")
		}
		if sum != want.Sum {
			return damaged(dir, want.Name, fmt.Sprintf("its checksum is %s, not %s", sum, want.Sum))
		}
	}
	return nil
}

func damaged(dir, name, how string) error {
	return fault.New(fault.DataLoss, "verify", filepath.Join(dir, name), how).
		WithHint("what was saved is damaged: bring its files back from a copy, or go on from an earlier snapshot")
}

// describe sizes and sums files.
func describe(ctx context.Context, dir string, names []string) ([]savedFile, error) {
	out := make([]savedFile, 0, len(names))
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		sum, err := sumOf(ctx, path)
		if err != nil {
			return nil, err
		}
		out = append(out, savedFile{Name: name, Size: info.Size(), Sum: sum})
	}
	return out, nil
}

func sumOf(ctx context.Context, path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := xxh3.New()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		_, _ = h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	s := h.Sum128()
	return fmt.Sprintf("%016x%016x", s.Hi, s.Lo), nil
}
