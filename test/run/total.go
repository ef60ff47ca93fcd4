package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// appendRecords adds a line per record, in one write: runs may end at the same time.
func appendRecords(path string, list []record) error {
	var lines []byte
	for _, one := range list {
		line, err := json.Marshal(one)
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(lines)
	return errors.Join(err, f.Close())
}

// total prints what the runs that were added to a file come to.
func total(path string, w io.Writer) error {
	list, err := readRecords(path)
	if err != nil {
		return err
	}
	list = merge(list)
	closing(w, list)
	if tally(list).failed > 0 {
		return errors.New("tests failed")
	}
	return nil
}

func readRecords(path string) ([]record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []record
	for lines := json.NewDecoder(bufio.NewReader(f)); ; {
		var one record
		err := lines.Decode(&one)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		out = append(out, one)
	}
}

// rank: of a test's outcomes the last here counts. One that has subtests in a run, and was skipped
// as a whole in another, ran.
var rank = []string{"skip", "parent", "pass", "fail"}

// merge makes one record of those of each test.
func merge(list []record) []record {
	type key struct{ pkg, test string }
	best := map[key]record{}
	for _, one := range list {
		k := key{one.Package, one.Test}
		if have, ok := best[k]; !ok || slices.Index(rank, one.Status) > slices.Index(rank, have.Status) {
			best[k] = one
		}
	}
	out := make([]record, 0, len(best))
	for _, one := range best {
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b record) int {
		return strings.Compare(a.Package+"\x00"+a.Test, b.Package+"\x00"+b.Test)
	})
	return out
}
