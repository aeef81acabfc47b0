// Renders charts with Helm's own engine in this process, on all cores.
//
// The argument is a directory with charts/APP and values/*.yaml. Standard input is a list of releases:
// {"app", "values": [FILE, ...]}. Charts are loaded and values merged before the clock starts. The output
// is the number of objects, the peak memory, and how long rendering took: once to text alone, and once
// with the text parsed into objects.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

type release struct {
	App    string   `json:"app"`
	Values []string `json:"values"`
	chart  *chart.Chart
	values map[string]any
}

type result struct {
	Objects       int64   `json:"objects"`
	TextSeconds   float64 `json:"textSeconds"`
	ObjectSeconds float64 `json:"objectSeconds"`
	PeakMemoryKiB int64   `json:"peakMemoryKiB"`
}

func main() {
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir string, in io.Reader, out io.Writer) error {
	var releases []*release
	if err := json.NewDecoder(in).Decode(&releases); err != nil {
		return err
	}
	if err := load(dir, releases); err != nil {
		return err
	}
	// Render everything once, so that neither measurement includes a cold start.
	if _, err := each(releases, objects); err != nil {
		return err
	}
	var found result
	start := time.Now()
	if _, err := each(releases, text); err != nil {
		return err
	}
	found.TextSeconds = time.Since(start).Seconds()
	start = time.Now()
	count, err := each(releases, objects)
	if err != nil {
		return err
	}
	found.ObjectSeconds = time.Since(start).Seconds()
	found.Objects = count
	found.PeakMemoryKiB = peakMemory()
	return json.NewEncoder(out).Encode(found)
}

func load(dir string, releases []*release) error {
	charts := map[string]*chart.Chart{}
	files := map[string][]byte{}
	for _, r := range releases {
		if charts[r.App] == nil {
			loaded, err := loader.Load(filepath.Join(dir, "charts", r.App))
			if err != nil {
				return err
			}
			charts[r.App] = loaded
		}
		r.chart = charts[r.App]
		r.values = map[string]any{}
		for _, name := range r.Values {
			if files[name] == nil {
				bytes, err := os.ReadFile(filepath.Join(dir, "values", name))
				if err != nil {
					return err
				}
				files[name] = bytes
			}
			layer := map[string]any{}
			if err := yaml.Unmarshal(files[name], &layer); err != nil {
				return err
			}
			r.values = chartutil.CoalesceTables(layer, r.values)
		}
	}
	return nil
}

func (r *release) render() (map[string]string, error) {
	options := chartutil.ReleaseOptions{Name: r.App, Namespace: r.App, Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(r.chart, r.values, options, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(r.chart, values)
}

func text(r *release) (int64, error) {
	_, err := r.render()
	return 0, err
}

func objects(r *release) (int64, error) {
	files, err := r.render()
	if err != nil {
		return 0, err
	}
	var count int64
	for name, content := range files {
		if strings.HasPrefix(filepath.Base(name), "_") {
			continue
		}
		decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(content)), 4096)
		for {
			var object map[string]any
			if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			if len(object) > 0 {
				count++
			}
		}
	}
	return count, nil
}

// each runs a job for every release on all cores, and returns the sum of the results.
func each(releases []*release, job func(*release) (int64, error)) (int64, error) {
	var next, total atomic.Int64
	var wait sync.WaitGroup
	failed := make(chan error, runtime.GOMAXPROCS(0))
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(releases)) {
					return
				}
				count, err := job(releases[i])
				if err != nil {
					failed <- err
					return
				}
				total.Add(count)
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
		return total.Load(), nil
	}
}

func peakMemory() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	return 0
}
