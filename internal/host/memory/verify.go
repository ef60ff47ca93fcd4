package memory

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Verify checks a template's file in place, all of it, for VMMs that map the file itself: its
// chunks against its table, and that what the table calls zero is zero in the file. Damage is
// fault.DataLoss. A file that was found whole is not read again as long as it is the same: device,
// inode, size and time of last change (not that of its links, which every start adds to). Who
// comes while it is read waits. It finds damage of a copy, not of a disk that changes its mind.
func Verify(ctx context.Context, path string, bytes int64) (Info, error) {
	info, err := whole.verify(ctx, path, bytes)
	return info, fault.Wrap(err, "verify template memory", path)
}

var whole = verified{entries: map[fileKey]*verification{}}

// fileKey tells whether a file is the one that was read.
type fileKey struct {
	dev, ino    uint64
	size, bytes int64
	mtime       unix.Timespec
}

// verified are the files that are whole, or are being read.
type verified struct {
	mu      sync.Mutex
	entries map[fileKey]*verification
}

// maxVerified bounds what is remembered: files that are gone are not told here.
const maxVerified = 1024

type verification struct {
	done chan struct{}
	info Info
	err  error
}

func (v *verified) verify(ctx context.Context, path string, bytes int64) (Info, error) {
	f, t, id, err := openTemplate(path, bytes)
	if err != nil {
		return Info{}, err
	}
	key, err := keyOf(f, bytes)
	if err != nil {
		_ = f.Close() // only read
		return Info{}, err
	}
	one, mine := v.claim(key)
	if !mine {
		_ = f.Close() // only read
	} else {
		// The reading serves others too: one caller that gives up must not fail them.
		go func() {
			defer func() { _ = f.Close() }() // only read
			one.info = Info{id, bytes, t.usedPages() * PageSize}
			one.err = t.verifyInPlace(context.WithoutCancel(ctx), f)
			v.settle(key, one)
		}()
	}
	select {
	case <-one.done:
		return one.info, one.err
	case <-ctx.Done():
		return Info{}, ctx.Err()
	}
}

func keyOf(f *os.File, bytes int64) (fileKey, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return fileKey{st.Dev, st.Ino, st.Size, bytes, st.Mtim}, err
}

func (v *verified) claim(key fileKey) (one *verification, mine bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if one, found := v.entries[key]; found {
		return one, false
	}
	if len(v.entries) >= maxVerified {
		clear(v.entries)
	}
	one = &verification{done: make(chan struct{})}
	v.entries[key] = one
	return one, true
}

// settle forgets a failure: the file may be put back.
func (v *verified) settle(key fileKey, one *verification) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if one.err != nil && v.entries[key] == one {
		delete(v.entries, key)
	}
	close(one.done)
}

// verifyInPlace reads the chunks that hold, or should hold, something.
func (t *table) verifyInPlace(ctx context.Context, f *os.File) error {
	chunks, err := dataChunks(f, t.bytes)
	if err != nil {
		return err
	}
	seen := make([]bool, len(t.chunks))
	for _, i := range chunks {
		seen[i] = true
	}
	for _, i := range t.usedChunks() {
		if !seen[i] {
			chunks = append(chunks, i)
		}
	}
	return parallel(ctx, chunks, func(i int, buf []byte) error {
		err := t.verifyChunk(f, i, buf[:t.length(i)])
		if fault.Is(err, fault.FailedPrecondition) {
			return badTemplate("the 2 MiB at %d do not match their checksum", int64(i)*chunkBytes)
		}
		return err
	})
}
