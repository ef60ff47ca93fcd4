package runtimetest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// treeVersion changes with what makeTree makes.
const treeVersion = "1"

var treeDirs = map[string]os.FileMode{
	"bin": 0o755, "etc": 0o755, "root": 0o700, "home/user": 0o755, "tmp": 0o777 | os.ModeSticky,
	// What is mounted over.
	"proc": 0o755, "sys": 0o755, "dev": 0o755, "run": 0o755,
}

var treeFiles = map[string]string{
	"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
	"etc/group":    "root:x:0:\ntty:x:5:\nuser:x:1000:\n",
	"etc/hostname": "roost\n",
	"etc/hosts":    "127.0.0.1 localhost\n",
}

// makeTree makes a file tree that has a shell and its tools, and nothing else.
func makeTree(tree, busybox string) error {
	for dir, mode := range treeDirs {
		path := filepath.Join(tree, dir)
		if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, mode)); err != nil {
			return err
		}
	}
	for name, content := range treeFiles {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return addBusybox(filepath.Join(tree, "bin"), busybox)
}

func addBusybox(bin, busybox string) error {
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", busybox, err)
	}
	if err := copyFile(filepath.Join(bin, "busybox"), busybox, 0o755); err != nil {
		return err
	}
	for _, tool := range strings.Fields(string(list)) {
		if tool == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(bin, tool)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string, mode os.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
