// Applies objects with Flux's own package, as its kustomize-controller does: in one long-running process,
// with four dry runs at a time. Client-side throttling is off, so Flux is faster than with the controller's
// default.
//
// The argument is a kubeconfig. Each line on standard input names a file with a JSON list of objects. The
// objects are read before the clock starts, and a line of JSON reports how long applying them took.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling"
	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/go-logr/logr"
)

// The default of kustomize-controller's flag --concurrent-ssa.
const concurrency = 4

type result struct {
	Seconds float64 `json:"seconds"`
}

func main() {
	log.SetLogger(logr.Discard())
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig string, in io.Reader, out io.Writer) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	manager, err := newManager(config)
	if err != nil {
		return err
	}
	answers := json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		objects, err := read(lines.Text())
		if err != nil {
			return err
		}
		manager.SetOwnerLabels(objects, "bench", "flux-system")
		if err := normalize.UnstructuredList(objects); err != nil {
			return err
		}
		start := time.Now()
		if _, err := manager.ApplyAllStaged(context.Background(), objects, ssa.DefaultApplyOptions()); err != nil {
			return err
		}
		if err := answers.Encode(result{Seconds: time.Since(start).Seconds()}); err != nil {
			return err
		}
	}
	return nil
}

func newManager(config *rest.Config) (*ssa.ResourceManager, error) {
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	mapper, err := apiutil.NewDynamicRESTMapper(config, httpClient)
	if err != nil {
		return nil, err
	}
	kube, err := client.New(config, client.Options{HTTPClient: httpClient, Mapper: mapper})
	if err != nil {
		return nil, err
	}
	poller := polling.NewStatusPoller(kube, mapper, polling.Options{})
	manager := ssa.NewResourceManager(kube, poller, ssa.Owner{
		Field: "kustomize-controller",
		Group: "kustomize.toolkit.fluxcd.io",
	})
	manager.SetConcurrency(concurrency)
	return manager, nil
}

func read(file string) ([]*unstructured.Unstructured, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var values []map[string]any
	if err := json.Unmarshal(content, &values); err != nil {
		return nil, err
	}
	objects := make([]*unstructured.Unstructured, 0, len(values))
	for _, value := range values {
		objects = append(objects, &unstructured.Unstructured{Object: value})
	}
	return objects, nil
}
