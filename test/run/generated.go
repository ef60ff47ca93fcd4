package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

const (
	generator    = "tools/generate.sh"
	generatedDir = "api/gen"
)

// checkGenerated generates into a temporary folder and names each file that differs from the
// committed one. It runs in the project's root folder.
func checkGenerated(ctx context.Context, bin string, w io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "roost-generated-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out, err := exec.CommandContext(ctx, "bash", generator, bin, dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", generator, err, out)
	}
	stale, err := differences(generatedDir, dir)
	if err != nil {
		return err
	}
	for _, line := range stale {
		fmt.Fprintln(w, line)
	}
	if len(stale) > 0 {
		return fmt.Errorf("generated code is stale; run: %s %s, and commit %s", generator, bin, generatedDir)
	}
	return nil
}

// differences compares two folders, file by file.
func differences(have, want string) ([]string, error) {
	a, err := contents(have)
	if err != nil {
		return nil, err
	}
	b, err := contents(want)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(b)) {
		old, found := a[name]
		switch {
		case !found:
			out = append(out, filepath.Join(have, name)+" is missing")
		case !bytes.Equal(old, b[name]):
			out = append(out, filepath.Join(have, name)+" is out of date")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if _, found := b[name]; !found {
			out = append(out, filepath.Join(have, name)+" is generated no more")
		}
	}
	return out, nil
}

func contents(dir string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		out[name], err = os.ReadFile(path)
		return err
	})
	return out, err
}
