package restore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

const keygenTimeout = 60 * time.Second

// renewHostKeys makes new SSH host keys of the types that exist: two sandboxes from one
// template must not be able to pose as each other.
func (s *Service) renewHostKeys(ctx context.Context) error {
	keys, _ := filepath.Glob(filepath.Join(s.Root, "etc/ssh/ssh_host_*_key"))
	keygen := filepath.Join(s.Root, "usr/bin/ssh-keygen")
	if _, err := os.Stat(keygen); err != nil || len(keys) == 0 || s.RunHelper == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keygenTimeout)
	defer cancel()
	for _, key := range keys {
		if err := s.renewHostKey(ctx, keygen, key); err != nil {
			return fault.Wrap(err, "renew", key)
		}
	}
	return nil
}

func (s *Service) renewHostKey(ctx context.Context, keygen, key string) error {
	kind := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(key), "ssh_host_"), "_key")
	temp := key + ".roost"
	_ = os.Remove(temp)
	err := s.RunHelper(ctx, keygen, "-q", "-N", "", "-t", kind, "-C", "", "-f", temp)
	if err == nil {
		err = errors.Join(os.Rename(temp+".pub", key+".pub"), os.Rename(temp, key))
	}
	if err != nil {
		_ = os.Remove(temp)
		_ = os.Remove(temp + ".pub")
	}
	return err
}
