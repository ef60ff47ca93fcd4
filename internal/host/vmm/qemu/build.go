package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"sync"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// binaryKey tells a binary that was replaced from the one that was hashed.
type binaryKey struct {
	path  string
	size  int64
	mtime time.Time
}

var builds sync.Map // binaryKey → hash

// hashOf is the binary's sha256; 20 MB are hashed once per process.
func hashOf(binary string) (string, error) {
	f, err := os.Open(binary)
	if err != nil {
		return "", fault.Wrap(err, "hash", binary)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fault.Wrap(err, "hash", binary)
	}
	key := binaryKey{binary, info.Size(), info.ModTime()}
	if sum, ok := builds.Load(key); ok {
		return sum.(string), nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fault.Wrap(err, "hash", binary)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	builds.Store(key, sum)
	return sum, nil
}
