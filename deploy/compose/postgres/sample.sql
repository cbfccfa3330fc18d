-- Sample rows, so that there is something to ask for: addVar, and commands enough that no alert takes them for too few.
INSERT INTO obex_dapl_functions (name, interface, description, type, logic, code)
VALUES (
    'addVar', '[{"item": "targetVarName", "type": "variable"}, {"item": "varValue", "type": "value"}]',
    'Sets a variable of the conversation', 'function', false,
    'def run(task, context):' || chr(10) || '    context.set(task["targetVarName"], task["varValue"])' || chr(10)
);

INSERT INTO obex_dapl_functions (name, interface, description, type, logic, code)
SELECT 'sample_' || lpad(number::text, 3, '0'), '[]', 'A sample', 'function', false, 'result = ' || number || chr(10)
FROM generate_series(1, 149) AS number;
