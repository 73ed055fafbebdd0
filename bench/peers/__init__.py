"""The same network behind other servers, each written as its documentation has it. They run in environments of their
own, which have neither our package nor its needs: nothing of ``service`` may be imported here."""
